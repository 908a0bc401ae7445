qspec 1

# Rounding to nearest at W4A4: no help against outliers.
extends "base/setup.qs"

recipe rtn_w4a4 {
}

scheme w4a4 {
  weights     int4 per channel symmetric
  activations int4 per token   symmetric
}

# allow QS045: a cell of the paper's table, in which this collapses
layers blocks[*].* use w4a4

apply rtn() on blocks[*].*
