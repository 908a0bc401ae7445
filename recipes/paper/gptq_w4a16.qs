qspec 1

# GPTQ at W4A16, groups of 128.
extends "base/setup.qs"

recipe gptq_w4a16 {
}

scheme w4a16 {
  weights     int4 per group 128 asymmetric
  activations none
}

layers blocks[*].* use w4a16

apply gptq(damp = 0.01, order = activation) on blocks[*].*
