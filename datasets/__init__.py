"""The data sets, one adapter per on-disk layout. Names only: nothing is imported until asked for."""

BUILTIN = {
    "mvtec_ad": "inpbench.datasets.mvtec:MVTEC_AD",
    "visa": "inpbench.datasets.visa:VISA",
    "real_iad": "inpbench.datasets.real_iad:REAL_IAD",
    "folder": "inpbench.datasets.folder:FOLDER",
    "elpv": "inpbench.datasets.elpv:ELPV",
    "sdd": "inpbench.datasets.sdd:SDD",
    "aitex": "inpbench.datasets.aitex:AITEX",
    "brainmri": "inpbench.datasets.brainmri:BRAINMRI",
    "headct": "inpbench.datasets.headct:HEADCT",
    "mnist": "inpbench.datasets.mnist:MNIST",
    "cifar10": "inpbench.datasets.cifar10:CIFAR10",
    "mpdd": "inpbench.datasets.mpdd:MPDD",
    "btad": "inpbench.datasets.btad:BTAD",
    "mvtec_ad_2": "inpbench.datasets.mvtec_ad_2:MVTEC_AD_2",
    "inctrl_lists": "inpbench.datasets.inctrl_lists:INCTRL_LISTS",
    "synthetic": "inpbench.datasets.synthetic:SYNTHETIC",
}
