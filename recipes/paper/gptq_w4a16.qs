qspec 1

# GPTQ at W4A16, groups of 128, symmetric as the paper's code has it (its text says asymmetric).
extends "base/setup.qs"

recipe gptq_w4a16 {
}

scheme w4a16 {
  weights     int4 per group 128 symmetric
  activations none
}

layers blocks[*].* use w4a16

apply gptq(damp = 0.01, order = activation) on blocks[*].*
