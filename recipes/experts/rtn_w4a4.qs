qspec 1

# Plain rounding to W4A4, the floor: without help against outliers the model collapses.
extends "base/setup.qs"

recipe rtn_w4a4 {
}

scheme w4a4 {
  weights     int4 per channel symmetric
  activations int4 per token   symmetric
}

# allow QS045: what happens without help against outliers is what this recipe shows
layers blocks[*].* use w4a4

apply rtn() on blocks[*].*
