#!/bin/sh
# Give an adapter to all servers that share a folder of adapters (--lora-dir), one after the other:
#     push-adapter.sh FILE.gguf FOLDER http://127.0.0.1:8081 http://127.0.0.1:8082 ...
# The file is there whole or not at all. A server that has the adapter already loads it anew by itself with --lora-watch;
# one that has not is asked to. API_KEY is sent where it is set. Ends with 1 at the first server that does not take it.
set -eu
file=$1 folder=$2
shift 2
name=$(basename "$file" .gguf)
cp "$file" "$folder/.$name.new"
mv "$folder/.$name.new" "$folder/$name.gguf"
for server in "$@"; do
    answer=$(curl -sS --fail-with-body --max-time 60 ${API_KEY:+-H "Authorization: Bearer $API_KEY"} \
        "$server/lora-adapters/load" -d "{\"name\": \"$name\"}") || { echo "$server: $answer" >&2; exit 1; }
    curl -sS --max-time 5 "$server/health" >/dev/null
    echo "$server: $answer"
done
