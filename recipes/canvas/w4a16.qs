qspec 1

# 4-bit weights in groups of 64, the largest that divide the 2112 and 704 channels of its MLPs. Saves memory.
extends "base/setup.qs"

recipe w4a16 {
}

scheme w4a16 {
  weights int4 per group 64 symmetric clip mse
}

layers blocks[*].* use w4a16

apply gptq(damp = 0.01, order = activation) on blocks[*].*
