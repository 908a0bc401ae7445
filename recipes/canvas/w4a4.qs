qspec 1

# 4 bits on both sides, behind smoothing (as in w8a8) and DuQuant's rotations: one for all experts that read an input.
extends "base/setup.qs"

recipe w4a4 {
}

scheme w4a4 {
  weights     int4 per channel symmetric clip mse
  activations int4 per token   symmetric clip 0.9
}

layers blocks[*].* use w4a4

apply smooth(alpha = 0.6)                     on blocks[*].attention.{q,k,v}
apply smooth(alpha = 0.6)                     on blocks[*].mlp.*
apply rotate_duquant(block = 64, steps = 256) on blocks[*].*
apply gptq(damp = 0.01, order = activation)   on blocks[*].*
