qspec 1

param bits = 9 in 2..8

recipe r {
  family llada
  model  "GSAI-ML/LLaDA-8B-Instruct"
}

scheme w8a8 {
  weights     int($bits) per channel symmetric
  activations int($bits) per token   symmetric
}

layers blocks[*].* use w8a8

apply rtn() on blocks[*].*
