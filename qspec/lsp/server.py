"""The protocol: messages of an editor to questions about `Recipes`, and answers back. Needs pygls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lsprotocol import types as lsp
from pygls.capabilities import ServerCapabilitiesBuilder
from pygls.exceptions import JsonRpcException, JsonRpcInvalidParams
from pygls.lsp.server import LanguageServer
from pygls.protocol import LanguageServerProtocol, default_converter, lsp_method
from pygls.uris import from_fs_path, to_fs_path

from qspec.diagnostics import Diagnostic, Edit, RecipeError, Span
from qspec.errors import UsageError
from qspec.language.completion import Kind
from qspec.lsp.hover import hover
from qspec.lsp.recipes import Outline, Recipes
from qspec.lsp.rename import renamed
from qspec.lsp.text import Place
from qspec.version import __version__

DELAY = 0.15  # seconds without a keystroke before a recipe is checked

_KINDS: dict[Kind, lsp.CompletionItemKind] = {
    "keyword": lsp.CompletionItemKind.Keyword,
    "setting": lsp.CompletionItemKind.Property,
    "pass": lsp.CompletionItemKind.Function,
    "scheme": lsp.CompletionItemKind.Struct,
    "param": lsp.CompletionItemKind.Variable,
    "role": lsp.CompletionItemKind.Module,
    "format": lsp.CompletionItemKind.TypeParameter,
    "value": lsp.CompletionItemKind.Value,
    "file": lsp.CompletionItemKind.File,
}
_ACTIONS = [lsp.CodeActionKind.QuickFix, lsp.CodeActionKind.SourceFixAll]
_SYMBOLS = {
    "recipe": lsp.SymbolKind.Module,
    "scheme": lsp.SymbolKind.Struct,
    "param": lsp.SymbolKind.Variable,
    "apply": lsp.SymbolKind.Function,
    "extends": lsp.SymbolKind.File,
    "layers": lsp.SymbolKind.Array,
}


class Protocol(LanguageServerProtocol):
    """Texts are kept by `Recipes` alone: pygls would cut lines at characters that end none in the protocol."""

    _server: Server

    @lsp_method(lsp.TEXT_DOCUMENT_DID_OPEN)
    def lsp_text_document__did_open(self, params: lsp.DidOpenTextDocumentParams) -> None:
        self._server.opened(params.text_document)

    @lsp_method(lsp.TEXT_DOCUMENT_DID_CHANGE)
    def lsp_text_document__did_change(self, params: lsp.DidChangeTextDocumentParams) -> None:
        self._server.changed(params.text_document.uri, params.content_changes)

    @lsp_method(lsp.TEXT_DOCUMENT_DID_CLOSE)
    def lsp_text_document__did_close(self, params: lsp.DidCloseTextDocumentParams) -> None:
        self._server.closed(params.text_document.uri)


class Server(LanguageServer):
    """Checks a recipe when typing pauses; answers everything else at once.

    Initialization options: `model`, a folder, hub id or stand-in, in whose terms hovers speak.
    """

    def __init__(self, delay: float = DELAY) -> None:
        super().__init__("qspec", __version__, protocol_cls=Protocol, converter_factory=default_converter)
        self.recipes = Recipes()
        self.delay = delay
        self.ended = False  # whether the editor asked to shut down, before it tells to exit
        self._uris: dict[str, str] = {}  # path -> as the editor spells it
        self._found: dict[str, dict[str, list[Diagnostic]]] = {}  # checked recipe -> file -> what is wrong there
        self._shown: dict[str, list[Diagnostic]] = {}  # file -> what the editor was told
        self._waiting: asyncio.TimerHandle | None = None

    # --- texts ---

    def begin(self, params: lsp.InitializeParams) -> None:
        """The units of columns, the workspace, and the model."""
        chosen = ServerCapabilitiesBuilder.choose_position_encoding(params.capabilities)  # what pygls answers
        self.recipes.encoding = str(getattr(chosen, "value", chosen))
        self.place()
        self.configure(params.initialization_options)

    def place(self) -> None:
        """Takes the workspace's folders."""
        uris = list(self.workspace.folders) or [self.workspace.root_uri or ""]
        self.recipes.folders = [Path(path) for uri in uris if uri and (path := to_fs_path(uri))]
        self.recipes.forget()

    def configure(self, options: Any) -> None:
        """Takes `model` from what the editor is set to."""
        model = options.get("model") if isinstance(options, dict) else None
        self.recipes.model = str(model) if model else None
        self.recipes.forget()

    def path(self, uri: str) -> str:
        path = to_fs_path(uri) or uri
        self._uris.setdefault(path, uri)
        return path

    def uri(self, path: str) -> str:
        return self._uris.get(path) or from_fs_path(path) or path

    def opened(self, document: lsp.TextDocumentItem) -> None:
        self.recipes.open(self.path(document.uri), document.text)
        self.check_soon(0)

    def changed(self, uri: str, changes: Sequence[lsp.TextDocumentContentChangeEvent]) -> None:
        for change in changes:
            between = None
            if isinstance(change, lsp.TextDocumentContentChangePartial):
                between = (_place(change.range.start), _place(change.range.end))
            self.recipes.change(self.path(uri), change.text, between)
        self.check_soon(self.delay)

    def closed(self, uri: str) -> None:
        self.recipes.close(self.path(uri))
        self.check_soon(0)

    # --- diagnostics ---

    def check_soon(self, delay: float) -> None:
        """Checks every open recipe once nothing changed for a while: a base's change is theirs too."""
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = asyncio.get_running_loop().call_later(delay, self.check)

    def check(self) -> None:
        """Tells the editor what is wrong in each file, where that changed."""
        self._found = {path: self._by_file(path) for path in self.recipes.opened}
        files = dict.fromkeys([*self._shown, *(file for found in self._found.values() for file in found)])
        for file in files:
            found = list(dict.fromkeys(d for one in self._found.values() for d in one.get(file, ())))
            if self._shown.get(file) != found:
                diagnostics = [self._diagnostic(d) for d in found]
                self.text_document_publish_diagnostics(lsp.PublishDiagnosticsParams(self.uri(file), diagnostics))
            self._shown[file] = found

    def _by_file(self, path: str) -> dict[str, list[Diagnostic]]:
        found: dict[str, list[Diagnostic]] = {path: []}
        for one in self.recipes.problems(path):
            found.setdefault(one.span.path, []).append(one)
        return found

    def _diagnostic(self, d: Diagnostic) -> lsp.Diagnostic:
        severity = lsp.DiagnosticSeverity.Error if d.severity == "error" else lsp.DiagnosticSeverity.Warning
        notes = [lsp.DiagnosticRelatedInformation(self.location(n.span), n.text) for n in d.notes]
        message = f"{d.message}\nnext: {d.hint}"
        return lsp.Diagnostic(
            self.range(d.span), message, severity, code=d.code, source="qspec", related_information=notes or None
        )

    # --- places ---

    def range(self, span: Span) -> lsp.Range:
        document = self.recipes.document(span.path)
        return lsp.Range(_position(document.place(span.start)), _position(document.place(span.end)))

    def location(self, span: Span) -> lsp.Location:
        return lsp.Location(self.uri(span.path), self.range(span))

    def at(self, params: Any) -> tuple[str, int]:
        """The file and offset that a request is about."""
        path = self.path(params.text_document.uri)
        return path, self.recipes.document(path).offset(_place(params.position))

    def text_edits(self, edits: Iterable[Edit]) -> list[lsp.TextEdit]:
        return [lsp.TextEdit(self.range(edit.span), edit.replacement) for edit in edits]

    def workspace_edit(self, edits: Iterable[Edit]) -> lsp.WorkspaceEdit:
        changes: dict[str, list[lsp.TextEdit]] = {}
        for edit in edits:
            changes.setdefault(self.uri(edit.span.path), []).extend(self.text_edits([edit]))
        return lsp.WorkspaceEdit(changes)

    def action(self, d: Diagnostic) -> lsp.CodeAction:
        return lsp.CodeAction(
            _title(d),
            kind=lsp.CodeActionKind.QuickFix,
            diagnostics=[self._diagnostic(d)],
            edit=self.workspace_edit(d.edits),
            is_preferred=True,
        )

    def fix_all(self, path: str) -> list[lsp.CodeAction]:
        """All sure fixes at once, as editors can ask for when a file is saved."""
        edits = self.recipes.fixed(path)
        kind = lsp.CodeActionKind.SourceFixAll
        return [lsp.CodeAction("Fix all", kind=kind, edit=self.workspace_edit(edits))] if edits else []

    def symbol(self, one: Outline) -> lsp.DocumentSymbol:
        kind = _SYMBOLS.get(one.kind, lsp.SymbolKind.Property if not one.children else lsp.SymbolKind.Namespace)
        children = [self.symbol(child) for child in one.children]
        return lsp.DocumentSymbol(one.name, kind, self.range(one.span), self.range(one.name_span), children=children)


def _place(position: lsp.Position) -> Place:
    return Place(position.line, position.character)


def _position(place: Place) -> lsp.Position:
    return lsp.Position(place.line, place.column)


def _title(d: Diagnostic) -> str:
    """A fix in the editor's menu: what it puts there, or the next step."""
    if len(d.edits) == 1 and d.edits[0].replacement.strip() and "\n" not in d.edits[0].replacement.strip():
        return f"Write `{d.edits[0].replacement.strip()}`"
    return f"{d.hint[0].upper()}{d.hint[1:]}"


def _asked(kind: lsp.CodeActionKind, only: Sequence[lsp.CodeActionKind | str] | None) -> bool:
    """Whether an editor that wants some kinds alone, `source` of which takes in `source.fixAll`, wants this one."""
    names = [str(getattr(one, "value", one)) for one in only or [kind]]
    return any(kind.value == name or kind.value.startswith(f"{name}.") for name in names)


def make_server(delay: float = DELAY) -> Server:
    """A server with every feature; `start_io()` runs it."""
    server = Server(delay)
    logging.getLogger("pygls.protocol.json_rpc").addFilter(_is_failure)
    _begin(server)
    _say(server)
    _find(server)
    return server


def _is_failure(record: logging.LogRecord) -> bool:
    """Whether a message is worth a traceback: what an editor was refused with a reason is not."""
    return not (record.exc_info and isinstance(record.exc_info[1], JsonRpcException))


def _begin(server: Server) -> None:
    """What the editor tells of itself."""
    feature = server.feature

    @feature(lsp.INITIALIZE)
    def initialize(params: lsp.InitializeParams) -> None:
        server.begin(params)

    @feature(lsp.SHUTDOWN)
    def end(_: Any) -> None:
        server.ended = True

    @feature(lsp.WORKSPACE_DID_CHANGE_CONFIGURATION)
    def configure(params: lsp.DidChangeConfigurationParams) -> None:
        server.configure(params.settings.get("qspec") if isinstance(params.settings, dict) else None)

    @feature(lsp.WORKSPACE_DID_CHANGE_WORKSPACE_FOLDERS)
    def place(_: lsp.DidChangeWorkspaceFoldersParams) -> None:
        server.place()
        server.check_soon(0)

    @feature(lsp.WORKSPACE_DID_CHANGE_WATCHED_FILES)
    @feature(lsp.TEXT_DOCUMENT_DID_SAVE)
    def saved(_: Any) -> None:
        server.recipes.forget()
        server.check_soon(0)


def _say(server: Server) -> None:
    """Words, explanations, layout and fixes."""
    feature = server.feature

    @feature(lsp.TEXT_DOCUMENT_COMPLETION, lsp.CompletionOptions(trigger_characters=[".", "(", "{", ",", "$", '"']))
    def complete(params: lsp.CompletionParams) -> list[lsp.CompletionItem]:
        span, found = server.recipes.complete(*server.at(params))
        place = server.range(span)
        return [
            lsp.CompletionItem(
                one.word,
                kind=_KINDS[one.kind],
                detail=one.detail or None,
                documentation=lsp.MarkupContent(lsp.MarkupKind.Markdown, one.doc) if one.doc else None,
                sort_text=f"{number:04d}",
                text_edit=lsp.TextEdit(place, one.word),
            )
            for number, one in enumerate(found)
        ]

    @feature(lsp.TEXT_DOCUMENT_HOVER)
    def on_hover(params: lsp.HoverParams) -> lsp.Hover | None:
        found = hover(server.recipes, *server.at(params))
        if found is None:
            return None
        return lsp.Hover(lsp.MarkupContent(lsp.MarkupKind.Markdown, found[0]), server.range(found[1]))

    @feature(lsp.TEXT_DOCUMENT_FORMATTING)
    def format_(params: lsp.DocumentFormattingParams) -> list[lsp.TextEdit] | None:
        try:
            return server.text_edits(server.recipes.formatted(server.path(params.text_document.uri)))
        except RecipeError:
            return None  # the diagnostics say why

    @feature(lsp.TEXT_DOCUMENT_CODE_ACTION, lsp.CodeActionOptions(code_action_kinds=_ACTIONS))
    def actions(params: lsp.CodeActionParams) -> list[lsp.CodeAction]:
        path = server.path(params.text_document.uri)
        document = server.recipes.document(path)
        start, end = (document.offset(_place(one)) for one in (params.range.start, params.range.end))
        touched = (d for d in server.recipes.problems(path) if d.span.path == path)
        only = params.context.only
        found = [server.action(d) for d in touched if d.edits and d.span.start <= end and start <= d.span.end]
        return [
            *(found if _asked(lsp.CodeActionKind.QuickFix, only) else []),
            *(server.fix_all(path) if _asked(lsp.CodeActionKind.SourceFixAll, only) else []),
        ]


def _find(server: Server) -> None:
    """Names: where they are declared and used, under another name, and all of a recipe's."""
    feature = server.feature

    @feature(lsp.TEXT_DOCUMENT_DEFINITION)
    def definition(params: lsp.DefinitionParams) -> lsp.Location | None:
        span = server.recipes.definition(*server.at(params))
        return server.location(span) if span else None

    @feature(lsp.TEXT_DOCUMENT_REFERENCES)
    def references(params: lsp.ReferenceParams) -> list[lsp.Location]:
        path, offset = server.at(params)
        symbol = server.recipes.symbol(path, offset)
        uses = server.recipes.uses(path, symbol) if symbol else []
        return [server.location(s.span) for s in uses if params.context.include_declaration or not s.declares]

    @feature(lsp.TEXT_DOCUMENT_PREPARE_RENAME)
    def prepare_rename(params: lsp.PrepareRenameParams) -> lsp.PrepareRenamePlaceholder | None:
        symbol = server.recipes.symbol(*server.at(params))
        return lsp.PrepareRenamePlaceholder(server.range(symbol.span), symbol.name) if symbol else None

    @feature(lsp.TEXT_DOCUMENT_RENAME, lsp.RenameOptions(prepare_provider=True))
    def rename(params: lsp.RenameParams) -> lsp.WorkspaceEdit:
        try:
            return server.workspace_edit(renamed(server.recipes, *server.at(params), params.new_name))
        except UsageError as error:
            raise JsonRpcInvalidParams(str(error)) from None

    @feature(lsp.TEXT_DOCUMENT_DOCUMENT_SYMBOL)
    def document_symbols(params: lsp.DocumentSymbolParams) -> list[lsp.DocumentSymbol]:
        return [server.symbol(one) for one in server.recipes.outline(server.path(params.text_document.uri))]
