"""`qspec bench`, `qspec tune`: times of the GEMMs on a GPU, beside cuBLAS, its limits and other packages;
of activation quantization kernels, and of whole denoising steps."""

from qspec.bench.data import FORMATS, LLADA, Bench, Cell
from qspec.bench.measure import run_bench, tune
from qspec.bench.render import write_bench

__all__ = ["FORMATS", "LLADA", "Bench", "Cell", "run_bench", "tune", "write_bench"]
