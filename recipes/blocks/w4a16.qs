qspec 1

# 4-bit weights for blocks of 4 to 32 tokens, which are bound by reading the weights.
# Unclipped for the stand-in's sake: a clip rounds the pairs of channels that cancel in it to codes of unequal size.
extends "base/setup.qs"

recipe w4a16 {
}

scheme w4a16 {
  weights int4 per group 128 symmetric
}

layers blocks[*].* use w4a16

apply gptq(damp = 0.01, order = activation) on blocks[*].*
