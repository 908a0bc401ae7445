qspec 1

recipe r {
  family llada
  model  "GSAI-ML/LLaDA-8B-Instruct"
}

scheme w4a4 {
  weights     int4 per channel symmetric
  activations int4 per token   symmetric
}

layers blocks[*].* use w4a4

apply smooth(alpha = 0.5) on blocks[*].*
apply rtn() on blocks[*].*
