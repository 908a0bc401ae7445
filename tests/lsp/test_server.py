"""The language server as an editor sees it: a process of its own, from initialize to exit."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcInvalidParams
from pygls.lsp.client import LanguageClient

BASE = """qspec 1

param alpha = 0.5

scheme w8a8 {
  weights     int8 per channel symmetric
  activations int8 per token   symmetric
}
"""
RECIPE = """qspec 1

extends "base.qs"

recipe r {
  family llada
  model  "no 𝔸 é"
}

layers blocks[*].* use w8a8

apply smooth(alpha = $alpha) on blocks[*].*
apply rtn()                  on blocks[*].*
"""
OPTIONS = {"model": "tiny-llada"}


class Editor:
    """A client with a recipe and its base open."""

    def __init__(self, folder: Path) -> None:
        self.client = LanguageClient("test", "1")
        self.folder = folder
        self.diagnostics: dict[str, list[lsp.Diagnostic]] = {}
        self.news = asyncio.Event()

        @self.client.feature(lsp.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
        def _(params: lsp.PublishDiagnosticsParams) -> None:
            self.diagnostics[params.uri] = list(params.diagnostics)
            self.news.set()

    def uri(self, name: str) -> str:
        return (self.folder / name).as_uri()

    async def start(self, encodings: list[lsp.PositionEncodingKind | str]) -> lsp.InitializeResult:
        await self.client.start_io(sys.executable, "-m", "qspec", "lsp")
        general = lsp.GeneralClientCapabilities(position_encodings=encodings)
        params = lsp.InitializeParams(
            lsp.ClientCapabilities(general=general),
            initialization_options=OPTIONS,
            workspace_folders=[lsp.WorkspaceFolder(self.folder.as_uri(), "w")],
        )
        result = await self.client.initialize_async(params)
        self.client.initialized(lsp.InitializedParams())
        return result

    async def stop(self) -> int:
        await self.client.shutdown_async(None)
        self.client.exit(None)
        await self.client.stop()
        server = self.client._server
        assert server is not None
        assert server.stderr is not None
        assert (await server.stderr.read()).decode() == ""
        return int(server.returncode or 0)

    async def open(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        document = lsp.TextDocumentItem(self.uri(name), "qspec", 1, text)
        self.client.text_document_did_open(lsp.DidOpenTextDocumentParams(document))

    async def told(self, name: str) -> list[lsp.Diagnostic]:
        """The diagnostics of a file, the next time that any are told."""
        await asyncio.wait_for(self.news.wait(), 20)
        self.news.clear()
        return self.diagnostics[self.uri(name)]

    def change(self, name: str, start: tuple[int, int], end: tuple[int, int], text: str) -> None:
        document = lsp.VersionedTextDocumentIdentifier(2, self.uri(name))
        between = lsp.Range(lsp.Position(*start), lsp.Position(*end))
        change = lsp.TextDocumentContentChangePartial(range=between, text=text)
        self.client.text_document_did_change(lsp.DidChangeTextDocumentParams(document, [change]))

    def place(self, name: str, line: int, column: int) -> Any:
        return {"text_document": lsp.TextDocumentIdentifier(self.uri(name)), "position": lsp.Position(line, column)}


def test_a_session_from_initialize_to_exit(tmp_path: Path) -> None:
    asyncio.run(session(tmp_path))


async def session(folder: Path) -> None:
    editor = Editor(folder)
    result = await editor.start(["utf-16"])
    check_capabilities(result.capabilities)
    (folder / "base.qs").write_text(BASE)
    await editor.open("r.qs", RECIPE)
    assert await editor.told("r.qs") == []
    await check_words(editor)
    await check_names(editor)
    await check_typing(editor)
    assert await editor.stop() == 0


def check_capabilities(can: lsp.ServerCapabilities) -> None:
    assert can.position_encoding == "utf-16"
    assert isinstance(can.text_document_sync, lsp.TextDocumentSyncOptions)
    assert can.text_document_sync.change == lsp.TextDocumentSyncKind.Incremental
    assert can.completion_provider is not None
    for one in ("hover", "definition", "references", "rename", "document_formatting", "document_symbol", "code_action"):
        assert getattr(can, f"{one}_provider"), one


async def check_words(editor: Editor) -> None:
    """Completion, hover, symbols."""
    client = editor.client
    found = await client.text_document_completion_async(lsp.CompletionParams(**editor.place("r.qs", 9, 11)))
    assert isinstance(found, list)
    assert [item.label for item in found] == ["embedding", "blocks[*]", "head", "module"]
    edit = found[1].text_edit
    assert isinstance(edit, lsp.TextEdit)
    assert (edit.range, edit.new_text) == (between(9, 7, 11), "blocks[*]")
    shown = await client.text_document_hover_async(lsp.HoverParams(**editor.place("r.qs", 9, 11)))
    assert shown is not None
    assert isinstance(shown.contents, lsp.MarkupContent)
    assert shown.range == between(9, 7, 18)
    assert shown.contents.value.startswith("42 modules of llada with 6 blocks of width 256\n")
    symbols = await client.text_document_document_symbol_async(
        lsp.DocumentSymbolParams(lsp.TextDocumentIdentifier(editor.uri("r.qs")))
    )
    assert [one.name for one in symbols or ()] == [
        "qspec 1",
        'extends "base.qs"',
        "recipe r",
        "layers blocks[*].* use w8a8",
        "apply smooth(alpha = $alpha) on blocks[*].*",
        "apply rtn() on blocks[*].*",
    ]


async def check_names(editor: Editor) -> None:
    """Definition, references and rename reach the base."""
    client = editor.client
    name = editor.place("r.qs", 9, 25)
    assert await client.text_document_definition_async(lsp.DefinitionParams(**name)) == lsp.Location(
        editor.uri("base.qs"), between(4, 7, 11)
    )
    base = await client.text_document_definition_async(lsp.DefinitionParams(**editor.place("r.qs", 2, 12)))
    assert base == lsp.Location(editor.uri("base.qs"), between(0, 0, 0))
    uses = await client.text_document_references_async(lsp.ReferenceParams(lsp.ReferenceContext(False), **name))
    assert list(uses or ()) == [lsp.Location(editor.uri("r.qs"), between(9, 23, 27))]
    place = await client.text_document_prepare_rename_async(lsp.PrepareRenameParams(**name))
    assert place == lsp.PrepareRenamePlaceholder(between(9, 23, 27), "w8a8")
    edit = await client.text_document_rename_async(lsp.RenameParams(new_name="eight", **name))
    assert edit is not None
    assert {uri: list(edits) for uri, edits in (edit.changes or {}).items()} == {
        editor.uri("r.qs"): [lsp.TextEdit(between(9, 23, 27), "eight")],
        editor.uri("base.qs"): [lsp.TextEdit(between(4, 7, 11), "eight")],
    }
    with pytest.raises(JsonRpcInvalidParams, match="`a b` cannot name a scheme"):
        await client.text_document_rename_async(lsp.RenameParams(new_name="a b", **name))


async def check_typing(editor: Editor) -> None:
    """Diagnostics behind characters of two units, their fix, and the layout."""
    client = editor.client
    editor.change("r.qs", (6, 18), (6, 18), " revison")
    (problem,) = await editor.told("r.qs")
    assert (problem.code, problem.range) == ("QS005", between(6, 19, 26))
    where = {"text_document": lsp.TextDocumentIdentifier(editor.uri("r.qs"))}
    asked = lsp.CodeActionParams(range=between(6, 21, 21), context=lsp.CodeActionContext([problem]), **where)
    action, every = await client.text_document_code_action_async(asked) or ()
    assert every.title == "Fix all"
    saved = lsp.CodeActionContext([], only=[lsp.CodeActionKind.Source])
    asked = lsp.CodeActionParams(range=between(0, 0, 0), context=saved, **where)
    assert list(await client.text_document_code_action_async(asked) or ()) == [every]
    assert isinstance(action, lsp.CodeAction)
    assert action.title == "Write `revision`"
    assert action.edit is not None
    assert {uri: list(edits) for uri, edits in (action.edit.changes or {}).items()} == {
        editor.uri("r.qs"): [lsp.TextEdit(between(6, 19, 26), "revision")]
    }
    options = lsp.FormattingOptions(tab_size=2, insert_spaces=True)
    assert await client.text_document_formatting_async(lsp.DocumentFormattingParams(options=options, **where)) is None
    editor.change("r.qs", (6, 19), (6, 26), 'revision   "𝔸"')
    assert await editor.told("r.qs") == []
    layout = await client.text_document_formatting_async(lsp.DocumentFormattingParams(options=options, **where))
    start, end = lsp.Position(6, 0), lsp.Position(7, 0)
    assert list(layout or ()) == [lsp.TextEdit(lsp.Range(start, end), '  model  "no 𝔸 é" revision "𝔸"\n')]
    client.text_document_did_close(lsp.DidCloseTextDocumentParams(where["text_document"]))


def between(line: int, start: int, end: int) -> lsp.Range:
    return lsp.Range(lsp.Position(line, start), lsp.Position(line, end))
