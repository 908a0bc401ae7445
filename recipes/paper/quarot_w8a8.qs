qspec 1

# QuaRot at W8A8, weights by GPTQ as in its paper (arXiv 2404.00456).
extends "base/setup.qs"

recipe quarot_w8a8 {
}

scheme w8a8 {
  weights     int8 per channel symmetric clip mse
  activations int8 per token   symmetric
}

layers blocks[*].* use w8a8

apply quarot()                              on blocks[*].*
apply gptq(damp = 0.01, order = activation) on blocks[*].*
