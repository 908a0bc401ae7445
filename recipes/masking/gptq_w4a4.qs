qspec 1

# GPTQ at W4A4 behind smoothing and DuQuant's rotations: what the mask of the calibration text is worth.
extends "../paper/base/setup.qs"

recipe gptq_w4a4 {
  family llada, dream, fast_dllm, sdar_moe
}

scheme w4a4 {
  weights     int4 per channel symmetric clip mse
  activations int4 per token   symmetric clip 0.9
}

layers blocks[*].* use w4a4

apply smooth(alpha = 0.6)                      on blocks[*].*
apply rotate_duquant(block = 128, steps = 256) on blocks[*].*
apply gptq(damp = 0.01, order = activation)    on blocks[*].*
