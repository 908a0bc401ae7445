qspec 1

# 4-bit weights for blocks of few tokens, which are bound by reading the weights of the experts that they go to.
extends "base/setup.qs"

recipe w4a16 {
}

scheme w4a16 {
  weights int4 per group 128 symmetric clip mse
}

layers blocks[*].* use w4a16

apply gptq(damp = 0.01, order = activation) on blocks[*].*
