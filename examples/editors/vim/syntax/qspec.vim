" Recipes of qspec, for Vim and Neovim. The words are written by tests/examples/test_editors.py.
if exists("b:current_syntax")
  finish
endif

syn match qspecNumber "\(\w\|\.\)\@1<!-\?\d\+\(\.\d\+\)\?\([eE][+-]\?\d\+\)\?"
syn match qspecNumber "\<\d\+x\d\+\>"
syn match qspecOperator "\.\.\|\*\|="
syn keyword qspecStatement apply calibrate emit evaluate extends layers param qspec recipe scheme search
syn keyword qspecSetting activations block budget chat draws family fused gap kernels length limit loss mask model nelbo offer probe refine regime require samples seed shots steps task text weigh weights
syn keyword qspecKeyword active asymmetric certainty channel clip field file fixed for grid group in keep masked memory module mse none on per points prefix prompts revision rollouts symmetric tensor token uniform unmasked use
syn keyword qspecFormat fp8_e4m3 int int2 int3 int4 int5 int6 int7 int8 mxfp4 nvfp4 uint uint3 uint4
syn keyword qspecRole attention blocks down embedding experts gate head mlp router shared
syn match qspecRole "[.{,]\@1<=\(k\|o\|q\|up\|v\)\>"
syn match qspecName "\(\<\(apply\|recipe\|scheme\|param\|use\)\s\+\)\@32<=\w\+"
syn match qspecParameter "\<\w\+\ze\s*=" contains=NONE
syn match qspecParam "\$\w\+"
syn region qspecString start=/"/ end=/"/ oneline
syn match qspecComment "#.*$" contains=@Spell

hi def link qspecComment Comment
hi def link qspecString String
hi def link qspecNumber Number
hi def link qspecOperator Operator
hi def link qspecStatement Statement
hi def link qspecSetting Keyword
hi def link qspecKeyword Keyword
hi def link qspecFormat Type
hi def link qspecRole Identifier
hi def link qspecName Function
hi def link qspecParameter Identifier
hi def link qspecParam PreProc

let b:current_syntax = "qspec"
