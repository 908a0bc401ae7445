qspec 1

# QuaRot at W4A4, weights by GPTQ as in its paper (arXiv 2404.00456).
extends "base/setup.qs"

recipe quarot_w4a4 {
}

scheme w4a4 {
  weights     int4 per channel symmetric clip mse
  activations int4 per token   symmetric clip 0.9
}

layers blocks[*].* use w4a4

apply quarot()                              on blocks[*].*
apply gptq(damp = 0.01, order = activation) on blocks[*].*
