// What the page says, in English and Chinese.
const WORDS = {
  en: {
    new: "New chat", export: "Export", import: "Import", settings: "Settings", send: "Send", stop: "Stop",
    message: "Write a message", conversations: "Conversations", untitled: "New chat", rename: "Rename", remove: "Delete",
    copy: "Copy", copied: "Copied", again: "Answer again", edit: "Edit", go_on: "Continue", use: "Use this answer",
    stopped: "stopped", cut: "cut off at the longest answer", failed: "interrupted", thoughts: "Thoughts",
    sure: "Delete this conversation?", title: "Its name", welcome: "What shall we talk about?", per_second: "tokens/s",
    tokens: "tokens", system: "System message", key: "API key", with: "Answer with", beside: "and beside it", nothing: "nothing",
    usual: "as the server has it", base: "the model alone", scale: "Scale", silent: "the server does not answer",
    full: "The browser's storage is full: export conversations and delete some.", bad_file: "This file has no conversations.",
    before: "before an edit",
  },
  zh: {
    new: "新对话", export: "导出", import: "导入", settings: "设置", send: "发送", stop: "停止",
    message: "输入消息", conversations: "对话", untitled: "新对话", rename: "重命名", remove: "删除",
    copy: "复制", copied: "已复制", again: "重新回答", edit: "编辑", go_on: "继续", use: "采用此回答",
    stopped: "已停止", cut: "达到最大长度", failed: "中断", thoughts: "思考",
    sure: "删除这个对话？", title: "名称", welcome: "聊点什么？", per_second: "词元/秒",
    tokens: "词元", system: "系统消息", key: "API 密钥", with: "用于回答", beside: "并排对比", nothing: "无",
    usual: "服务器默认", base: "仅基础模型", scale: "强度", silent: "服务器没有响应",
    full: "浏览器存储已满：请导出并删除一些对话。", bad_file: "文件中没有对话。", before: "编辑之前",
  },
};
let language = localStorage.getItem("llamacy.language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");
export const t = (word) => WORDS[language][word] ?? word;
export const languageNow = () => language;

/** Write the words into what is on the page. */
export function speak(chosen) {
  if (chosen) localStorage.setItem("llamacy.language", (language = chosen));
  document.documentElement.lang = language;
  for (const e of document.querySelectorAll("[data-t]")) e.textContent = t(e.dataset.t);
  for (const e of document.querySelectorAll("[data-label]")) e.setAttribute("aria-label", t(e.dataset.label));
  for (const e of document.querySelectorAll("[data-place]")) e.placeholder = t(e.dataset.place);
}
