"""Texts that every filter must keep - a chapter, a play, an essay - and how to make documents of texts."""

from __future__ import annotations

from pathlib import Path

from datatrove.data import Document

from datamodules.prepare.document import Item, pack
from datamodules.prepare.filters.language import LanguageFilter
from datamodules.prepare.filters.length import LengthFilter
from datamodules.prepare.filters.lines import LineFilter
from datamodules.prepare.filters.repetition import RepetitionFilter
from datamodules.prepare.filters.symbols import SymbolFilter
from datamodules.prepare.step import Filter

QUICKSTART = Path(__file__).parents[4] / "data" / "quickstart" / "train"

CHAPTER = """第一回　渡江水孤舟遇雨　宿古寺老僧论兵
诗曰：江上秋风起，孤帆夜未还。一灯临远岸，万木响空山。
却说太守自离了府城，带领三百余人，望南而行。行不数日，天降大雨，江水骤涨，船不能渡。太守立于岸上，仰天长叹曰：“吾奉命平乱，岂料为水所阻！”左右皆默然。
忽见上流一叶小舟，冒雨而来。舟中坐一老者，须发皆白，身披蓑衣，手执长竿，大叫曰：“将军欲渡乎？此水虽急，三更必退。山后有一古寺，可暂避之。”言讫，舟去如飞，不知所往。
太守依其言，引众入寺。寺中只有一僧，年逾八十，煮茶相待。太守问曰：“师父久居此山，知贼兵虚实否？”僧笑曰：“贼虽众，其心不一；将军虽寡，其志甚坚。兵法云，知己知彼，百战不殆。将军但守渡口，不出半月，彼粮尽自散矣。”
是夜三更，雨止水退，果如老者所言。太守大喜，传令渡江。未知此去胜负如何，且听下回分解。
"""

PLAY = """THE LAMP AT THE HARBOUR

SCENE I. A quay at night.

[Enter the KEEPER with a lantern, and a SAILOR.]

KEEPER.
Who walks so late along the weeping stones,
When every honest hull lies fast asleep?

SAILOR.
One that has lost his ship, good sir, and finds
No bed so soft as hope of morning light.

KEEPER.
Then sit thee down; the tide will turn at four,
And with the tide thy captain may relent.

SAILOR.
He swore an oath to leave me on the shore
For that I sang when silence was his law.

KEEPER.
A captain's oath is written in the foam;
The wind that wrote it wipes it out again.

SAILOR.
I thank thee for the comfort of thy flame.
What is thy price? I have but half a coin.

KEEPER.
Keep it, and sing. I have not heard a song
Since my own boy went seaward in the spring.

[The SAILOR sings. Exeunt.]
"""

ESSAY = """Most who learn to bake bread at home begin with a recipe and end with a habit. The recipe says
how much flour and how much water; the habit says when the dough is ready, which no recipe can. In the
first weeks the loaves come out heavy, because the yeast was hurried or the oven was not hot enough.

Then one morning the crust sings as it cools, and the baker understands what the book was trying to say.
面包的道理和做人差不多：急不得，也懒不得。After that there is no need to measure everything again.
"""

CLASSICS = (CHAPTER, PLAY, ESSAY)


def document(text: str, document_id: str = "corpus: 1") -> Document:
    """A document of one text."""
    return pack([Item("text", text=text)], document_id, "corpus")


def captioned(text: str) -> Document:
    """A document of a picture (never opened here) and its caption."""
    items = [Item("image", media=b"not opened", name="a.png"), Item("text", text=text)]
    return pack(items, "pictures: 1", "pictures")


def text_filters() -> list[Filter]:
    """All filters of text, with their defaults."""
    return [LanguageFilter(), LengthFilter(), SymbolFilter(), RepetitionFilter(), LineFilter()]
