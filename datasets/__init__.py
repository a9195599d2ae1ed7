"""The data sets, one adapter per on-disk layout. Names only: nothing is imported until asked for."""

BUILTIN = {
    "mvtec_ad": "inpbench.datasets.mvtec:MVTEC_AD",
    "visa": "inpbench.datasets.visa:VISA",
    "real_iad": "inpbench.datasets.real_iad:REAL_IAD",
    "folder": "inpbench.datasets.folder:FOLDER",
    "elpv": "inpbench.datasets.elpv:ELPV",
    "synthetic": "inpbench.datasets.synthetic:SYNTHETIC",
}
