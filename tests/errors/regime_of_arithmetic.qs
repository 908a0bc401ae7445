qspec 1

recipe r {
  family llada
  model  "GSAI-ML/LLaDA-8B-Instruct"
}

scheme w4a16 {
  weights     int4 per group 128 symmetric
}

layers blocks[*].* use w4a16

apply rtn() on blocks[*].*

emit {
  kernels triton for sm_90
  regime  full_sequence
}
