qspec 1

# AWQ at W4A16, groups of 128, with zero points as in its code: scales, then clips, then rounding to nearest.
# The outliers of the bundled stand-ins cancel on symmetric grids alone (examples/standins), so that it loses most of these.
extends "base/setup.qs"

recipe awq_w4a16 {
}

scheme w4a16 {
  weights     uint4 per group 128 asymmetric
  activations none
}

layers blocks[*].* use w4a16

apply awq() on blocks[*].*
apply rtn() on blocks[*].*
