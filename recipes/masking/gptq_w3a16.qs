qspec 1

# GPTQ at W3A16, groups of 64, symmetric: what the mask of the calibration text is worth.
extends "../paper/base/setup.qs"

recipe gptq_w3a16 {
  family llada, dream, fast_dllm, sdar_moe
}

scheme w3a16 {
  weights     int3 per group 64 symmetric
  activations none
}

layers blocks[*].* use w3a16

apply gptq(damp = 0.01, order = activation) on blocks[*].*
