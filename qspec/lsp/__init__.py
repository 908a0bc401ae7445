"""The language server of recipes: `qspec lsp`, for any editor that speaks the Language Server Protocol. No torch.

text      a document as an editor has it: lines in its own units, changes applied piece by piece
recipes   all open recipes over those on disk, and every answer about them, without the protocol
hover     what is said of the word under the cursor
rename    a scheme or param under another name, through all recipes that share it
server    the protocol (needs the extra `lsp`)
"""
