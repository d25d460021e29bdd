"""Command lines as llama.cpp's READMEs, guides and compose files have them: they parse, and mean what they meant."""

import ast
import shlex

import pytest

from tools.commands_doc import parser_of

# A command and its line, and below it what comes of some flags.
LINES = r"""
main -m model.gguf
main -m model.gguf -cnv --chat-template chatml
= {'conversation': True, 'chat_template': 'chatml'}
main -m model.gguf -p "I believe the meaning of life is" -n 128 -no-cnv
= {'conversation': False, 'n_predict': 128}
main -m model.gguf -i --color -r 'User:' --in-prefix ' ' -f prompts/chat-with-bob.txt -n 256 --repeat_penalty \
  1.0
= {'interactive': True, 'stop': ['User:'], 'in_prefix': ' ', 'n_predict': 256}
main -m model.gguf -sys 'You are a helpful assistant' -p Hello --jinja --single-turn
= {'single_turn': True}
main -m m.gguf --ignore-eos -n -1 --temp 0.7 --top-k 40 --top-p 0.9 --min-p 0.05 -s 42
= {'ignore_eos': True, 'n_predict': -1, 'seed': 42, 'top_k': 40}
main -m m.gguf -ngl 99 -fa on -c 16384 -ctk q8_0 -ctv q8_0 -t 8 -tb 16 -b 2048 -ub 512 --no-mmap -ot 'exps=CPU'
= {'ctx_size': 16384, 'cache_type_k': 'q8_0', 'threads': 8, 'no_mmap': True}
main -m m.gguf --log-disable --simple-io --no-display-prompt --no-warmup -st -p hi -dev none --numa distribute
= {'no_display_prompt': True}
main -m m.gguf -co -cnv -mli --keep 4 --context-shift -np 1 --no-perf --prio 2 --poll 50 -C 0xff --cpu-strict 1
= {'multiline_input': True, 'n_keep': 4, 'context_shift': True}
main --model m.gguf --threads -1 --ctx-size 0 --n-gpu-layers all --seed -1 --prio 3 --temp 1.0 --min-p 0.0
= {'threads': -1, 'ctx_size': 0, 'seed': -1}
server -m model.gguf --port 8080
= {'port': 8080}
server -m model.gguf --port 8080 -np 4 -c 16384 -ngl 99 -fa on --jinja
= {'parallel': 4, 'ctx_size': 16384}
server -m model.gguf -c 2048 --host 0.0.0.0 --no-webui --metrics --slots
= {'no_webui': True, 'metrics': True}
server -m model.gguf -c 16384 -np 4 -cb --threads-http 8 --cache-reuse 256 -n 512 -to 1200
= {'n_predict': 512}
server -m model.gguf --embedding --pooling cls -ub 8192
= {'embeddings_only': True, 'pooling': 'cls'}
server -m m.gguf --jinja --chat-template-file t.jinja --reasoning-format none --reasoning-budget 0 -lv 1
= {'chat_template_file': 't.jinja', 'reasoning_budget': 0}
server -m m.gguf --lora a.gguf,b.gguf --lora-init-without-apply --api-key k1,k2 --api-prefix /api --log-colors \
  off
= {'lora': [('a.gguf', 1.0), ('b.gguf', 1.0)], 'lora_init_without_apply': True}
server -m m.gguf --no-context-shift --no-warmup --no-mmproj -kvu -cram 0 --no-slots --props -a my-model
= {'slots': False, 'props': True, 'alias': 'my-model'}
perplexity -m model.gguf -f wiki.test.raw -ngl 99
= {'file': 'wiki.test.raw'}
perplexity -m model.gguf -f file.txt -c 512 -b 512 -t 4 --chunks 20 -fa off --no-mmap
= {'ctx_size': 512, 'chunks': 20}
bench -m model.gguf
bench -m model.gguf -p 512 -n 128 -r 5 -o json
= {'n_prompt': [512], 'n_gen': [128], 'output': 'json'}
bench -m model.gguf -ngl 99 -fa 0,1 -p 0 -n 128,256,512 -t 2 -b 2048 -ub 512 -mmp 0 -ctk q8_0 --progress
= {'n_prompt': [0], 'n_gen': [128, 256, 512]}
bench -m model.gguf -n 0 -n 16 -p 64 -t 1,2,4,8,16,32 -pg 512,128 -d 0,512 --no-warmup --delay 1 -o csv
= {'n_gen': [0, 16], 'threads': [1, 2, 4, 8, 16, 32], 'prompt_and_gen': [(512, 128)], 'n_depth': [0, 512]}
perplexity -m model.gguf -f file.txt -c 0 --chunks -1 -t 4 -np 4 -fit off
= {'ctx_size': 0, 'chunks': None}
finetune -f data.txt -m m.gguf -ngl 999 -c 512 -ub 512 -lr 1e-5 -epochs 3 -wd 1e-9 -val-split 0.05 -opt adamw
= {'train_data': ['data.txt'], 'learning_rate': 1e-05, 'epochs': 3, 'weight_decay': 1e-09, 'val_split': 0.05}
quantize --tensor-type attn_v=q8_0 --token-embedding-type q8_0 --imatrix i.dat --max-buffer-size 99 m.gguf q.gguf q4_k_m
= {'input': 'm.gguf', 'output': 'q.gguf', 'type': 'q4_k_m', 'imatrix': 'i.dat'}
quantize --allow-requantize --leave-output-tensor --pure --keep-split m.gguf Q4_0 8
= {'allow_requantize': True, 'keep_split': True}
convert --outfile model.{ftype}.gguf --outtype q8_0 --verbose --use-temp-file --model-name Name models/x.gguf
= {'outfile': 'model.{ftype}.gguf', 'outtype': 'q8_0', 'model_name': 'Name'}
tokenize -m model.gguf -p 'Hello world' --ids --log-disable --show-count
= {'ids': True}
export-lora -m base.gguf -o out.gguf --lora a.gguf
= {'output': 'out.gguf'}
export-lora -m base.gguf -o out.gguf --lora-scaled a.gguf 0.5 --lora-scaled b.gguf:2 -t 4 -ngl 99
= {'lora': [('a.gguf', 0.5), ('b.gguf', 2.0)]}
finetune --model-base m.gguf --train-data shakespeare.txt --threads 6 --adam-iter 30 --batch 4 --ctx 64 \
  --use-checkpointing --sample-start '\n' -ngl 33
= {'max_steps': 30, 'batch_size': 4, 'ctx_size': 64}
"""


def cases():
    """Yield (command, words, {dest: value}) of LINES."""
    command, words = "", []
    for line in [*LINES.replace("\\\n", " ").strip().splitlines(), ""]:
        if line.startswith("= "):
            yield command, words, ast.literal_eval(line[2:])
            words = []
            continue
        if words:
            yield command, words, {}
        command, *words = shlex.split(line) or [""]


@pytest.mark.parametrize(("command", "words", "wanted"), list(cases()))
def test_it_parses_and_means_what_it_says(command, words, wanted, capsys):
    args = vars(parser_of(command).parse_args(words))
    assert {name: args[name] for name in wanted} == wanted
    assert (args.get("input") or args["model"]).endswith(".gguf")
    err = capsys.readouterr().err
    assert err == "" or (err.endswith(": no effect here\n") and err.count("\n") == 1)
