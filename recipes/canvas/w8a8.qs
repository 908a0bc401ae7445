qspec 1

# 8 bits on both sides. No scale of `o` survives the norm of each head's values, so smoothing leaves it out.
extends "base/setup.qs"

recipe w8a8 {
}

scheme w8a8 {
  weights     int8 per channel symmetric
  activations int8 per token   symmetric
}

layers blocks[*].* use w8a8

apply smooth(alpha = 0.5) on blocks[*].attention.{q,k,v}
apply smooth(alpha = 0.5) on blocks[*].mlp.*
apply rtn()               on blocks[*].*
