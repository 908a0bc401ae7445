autocmd BufRead,BufNewFile *.qs setfiletype qspec
