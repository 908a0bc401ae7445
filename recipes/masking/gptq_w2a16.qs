qspec 1

# GPTQ at W2A16 in groups of 64: what the mask of the calibration text is worth.
extends "../paper/base/setup.qs"

recipe gptq_w2a16 {
  family llada, dream, fast_dllm, sdar_moe
}

scheme w2a16 {
  weights     int2 per group 64 asymmetric
  activations none
}

layers blocks[*].* use w2a16

apply gptq(damp = 0.01, order = activation) on blocks[*].*
