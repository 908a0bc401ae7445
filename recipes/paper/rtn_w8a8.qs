qspec 1

# Rounding to nearest at W8A8: no help against outliers.
extends "base/setup.qs"

recipe rtn_w8a8 {
}

scheme w8a8 {
  weights     int8 per channel symmetric
  activations int8 per token   symmetric
}

layers blocks[*].* use w8a8

apply rtn() on blocks[*].*
