// Starts `qspec lsp` and lets VS Code talk to it. Everything that it knows about recipes is in the server.
const fs = require("fs");
const path = require("path");
const { window, workspace } = require("vscode");
const { LanguageClient } = require("vscode-languageclient/node");

let client;

/** The command as it is set, a relative program taken from the workspace where it is there. */
function command() {
  const [program, ...args] = workspace.getConfiguration("qspec").get("command");
  const folder = workspace.workspaceFolders?.[0]?.uri.fsPath;
  const local = folder && path.join(folder, program);
  return { command: local && program.includes("/") && fs.existsSync(local) ? local : program, args };
}

async function start() {
  const watcher = workspace.createFileSystemWatcher("**/*.qs");
  client = new LanguageClient("qspec", "qspec", command(), {
    documentSelector: [{ language: "qspec" }],
    initializationOptions: { model: workspace.getConfiguration("qspec").get("model") },
    synchronize: { configurationSection: "qspec", fileEvents: watcher },
  });
  try {
    await client.start();
  } catch (error) {
    window.showErrorMessage(`qspec lsp does not start (pip install 'qspec[lsp]', or set qspec.command): ${error}`);
  }
}

module.exports = { activate: start, deactivate: () => client?.stop() };
