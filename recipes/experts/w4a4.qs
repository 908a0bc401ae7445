qspec 1

# 4 bits on both sides, behind smoothing and DuQuant's rotations: one for all that read a layer's input, one for all down.
# What the gate makes is 8 bits wide at the experts' down, whose few channels hardly spread its massive values.
extends "base/setup.qs"

recipe w4a4 {
}

scheme w4a4 {
  weights     int4 per channel symmetric clip mse
  activations int4 per token   symmetric clip 0.9
}

scheme w4a8 {
  weights     int4 per channel symmetric clip mse
  activations int8 per token   symmetric
}

layers blocks[*].*                   use w4a4
layers blocks[*].mlp.experts[*].down use w4a8

apply smooth(alpha = 0.6)                      on blocks[*].*
apply rotate_duquant(block = 128, steps = 256) on blocks[*].*
apply gptq(damp = 0.01, order = activation)    on blocks[*].*
