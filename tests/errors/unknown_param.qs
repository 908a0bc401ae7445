qspec 1

param bits = 8

recipe r {
  family llada
  model  "GSAI-ML/LLaDA-8B-Instruct"
}

scheme w8a8 {
  weights     int($bitz) per channel symmetric
  activations int($bits) per token   symmetric
}

layers blocks[*].* use w8a8

apply rtn() on blocks[*].*
