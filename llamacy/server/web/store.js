// Conversations, kept in the browser: {id, title, messages, draft, updated}. A message is {role, content}; an answer has
// variants [{with, content, thought, state, note}] and the number that was chosen.
import { t } from "./words.js";

const PREFIX = "llamacy.talk.";
const newId = () => Date.now().toString(36) + Math.random().toString(36).slice(2, 8);

export const blank = () => ({ id: newId(), title: "", messages: [], draft: "", updated: Date.now() });

/** All conversations, the newest first. */
export function all() {
  const found = [];
  for (const key of Object.keys(localStorage)) {
    if (!key.startsWith(PREFIX)) continue;
    try { found.push(JSON.parse(localStorage.getItem(key))); } catch { /* another version's */ }
  }
  return found.sort((a, b) => b.updated - a.updated);
}

/** Keep a conversation; one without anything in it is none. */
export function keep(talk) {
  if (!talk.messages.length && !talk.draft && !talk.title) return localStorage.removeItem(PREFIX + talk.id);
  try { localStorage.setItem(PREFIX + talk.id, JSON.stringify(talk)); } catch { alert(t("full")); }
}

export const remove = (talk) => localStorage.removeItem(PREFIX + talk.id);
export const titleOf = (talk) => talk.title || talk.messages[0]?.content.slice(0, 60) || talk.draft.slice(0, 60) || t("untitled");
export const textOf = (message) => message.variants ? message.variants[message.chosen].content : message.content;

/** What is sent of a conversation's first n messages: those that say something. */
export const sent = (messages) =>
  messages.map((m) => ({ role: m.role, content: textOf(m) })).filter((m) => m.content.trim());

export const exported = () => JSON.stringify({ llamacy: 1, conversations: all() }, null, 1);

/** Add an export's conversations to those that are here; say how many. */
export function imported(text) {
  const given = JSON.parse(text).conversations;
  if (!Array.isArray(given) || !given.every((talk) => Array.isArray(talk.messages))) throw new Error(t("bad_file"));
  for (const talk of given) keep({ ...blank(), ...talk, id: newId() });
  return given.length;
}
