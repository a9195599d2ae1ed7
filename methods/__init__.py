"""The methods under test, one folder each, and the pieces they share. Names only: nothing is imported until asked for."""

BUILTIN = {
    "inp_former": "inpbench.methods.inp_former:INFO",
    "dinomaly": "inpbench.methods.dinomaly:INFO",
    "crr": "inpbench.methods.crr:INFO",
    "inctrl": "inpbench.methods.inctrl:INFO",
    "winclip": "inpbench.methods.winclip:INFO",
    "pmad": "inpbench.methods.pmad:INFO",
    "patchcore": "inpbench.methods.patchcore:INFO",
    "raw_pixel": "inpbench.methods.raw_pixel:INFO",
}

# Methods of other packages behind one adapter, called <family>.<member>.
FAMILIES = {"anomalib": "inpbench.methods.anomalib:FAMILY"}
