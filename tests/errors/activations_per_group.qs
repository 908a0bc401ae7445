qspec 1

recipe r {
  family llada
  model  "GSAI-ML/LLaDA-8B-Instruct"
}

scheme w4a4 {
  weights     int4 per channel symmetric
  activations int4 per group 128 symmetric
}

layers blocks[*].* use w4a4

apply rtn() on blocks[*].*
