"""The methods under test, one folder each, and the pieces they share. Names only: nothing is imported until asked for."""

BUILTIN = {
    "inp_former": "inpbench.methods.inp_former:INFO",
    "dinomaly": "inpbench.methods.dinomaly:INFO",
    "crr": "inpbench.methods.crr:INFO",
    "raw_pixel": "inpbench.methods.raw_pixel:INFO",
}
