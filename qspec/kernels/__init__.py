"""The kernel layer: packing, code generation from templates, the CPU reference, and the quantized linear."""
