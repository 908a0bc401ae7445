qspec 1

recipe r {
  family llada
  model  "GSAI-ML/LLaDA-8B-Instruct"
}

scheme w8a8 {
  weights     fp8_e4m3 per channel asymmetric
  activations fp8_e4m3 per token symmetric
}

layers blocks[*].* use w8a8

apply rtn() on blocks[*].*
