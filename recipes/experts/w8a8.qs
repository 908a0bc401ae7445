qspec 1

# 8 bits on both sides, for many texts at once.
extends "base/setup.qs"

recipe w8a8 {
}

scheme w8a8 {
  weights     int8 per channel symmetric
  activations int8 per token   symmetric
}

layers blocks[*].* use w8a8

apply smooth(alpha = 0.5) on blocks[*].*
apply rtn()               on blocks[*].*
