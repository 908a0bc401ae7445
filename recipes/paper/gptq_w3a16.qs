qspec 1

# GPTQ at W3A16, groups of 128, symmetric as the paper's code has it (its text says asymmetric).
extends "base/setup.qs"

recipe gptq_w3a16 {
}

scheme w3a16 {
  weights     int3 per group 128 symmetric
  activations none
}

layers blocks[*].* use w3a16

apply gptq(damp = 0.01, order = activation) on blocks[*].*
