"""Languages: each of those that can be told, mixtures, and what is too short to tell."""

from __future__ import annotations

import pytest
from sample_texts import CHAPTER, ESSAY, PLAY, document

from datamodules.prepare.filters.language import ANY_LATIN, LanguageFilter, language_shares

SENTENCES = {
    "zh": "这个模型可以同时阅读文字、图像和声音，而且从随机的权重开始训练，不需要任何现成的编码器。" * 2,
    "ja": "この模型は文字と画像と音声を同時に読むことができます。訓練は乱数から始まり、部品は使いません。",
    "ko": "이 모형은 글과 그림과 소리를 함께 읽을 수 있으며, 무작위 값에서 학습을 시작합니다.",
    "el": "Το μοντέλο διαβάζει κείμενο, εικόνες και ήχο μαζί, και ξεκινά από τυχαία βάρη.",
    "he": "המודל קורא טקסט, תמונות וקול יחד, ומתחיל ממשקלים אקראיים לגמרי.",
    "cyrillic": "Модель читает текст, изображения и звук вместе и обучается с нуля, без готовых частей.",
    "arabic": "يقرأ النموذج النص والصور والصوت معا، ويبدأ التدريب من أوزان عشوائية.",
    "indic": "यह मॉडल पाठ, चित्र और ध्वनि को एक साथ पढ़ता है और शून्य से सीखता है।",
    "southeast-asian": "แบบจำลองนี้อ่านข้อความ รูปภาพ และเสียงพร้อมกัน และเริ่มฝึกจากศูนย์",
    "en": "The model reads text, pictures and sound in one tower, and it is trained from random weights, so "
    "that nobody has to ask for a part that was made elsewhere.",
    "de": "Das Modell liest Texte, Bilder und Töne in einem Turm und wird mit zufälligen Gewichten "
    "trainiert, so dass man nicht nach einem Teil suchen muss, das von anderen gemacht ist.",
    "fr": "Le modèle lit le texte, les images et le son dans une seule tour, et il est entraîné avec des "
    "poids qui ne sont pas connus avant le début de la course.",
    "es": "El modelo lee el texto, las imágenes y el sonido en una sola torre, y se entrena con los pesos "
    "que no están en ninguna otra parte del mundo.",
    "it": "Il modello legge il testo, le immagini e il suono in una sola torre, ed è addestrato con dei pesi "
    "che non sono mai stati usati nella vita di una persona.",
    "pt": "O modelo lê o texto, as imagens e o som em uma só torre, e não precisa dos pesos que foram feitos "
    "por outros, mas começa do zero ao lado de uma pessoa.",
    "nl": "Het model leest tekst, beelden en geluid in een toren en wordt niet met gewichten van een ander "
    "gemaakt, maar begint met niets dat er al is.",
    "pl": "Model czyta tekst, obrazy i dźwięk w jednej wieży, a nie jest tak, że się uczy z wagami, które są "
    "zrobione przez innych, bo to jest jego początek od zera.",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_is_of_its_language(language: str) -> None:
    shares = language_shares(SENTENCES[language])
    assert max(shares, key=shares.__getitem__) == language
    assert sum(shares.values()) == pytest.approx(1)
    assert LanguageFilter([language]).judge(document(SENTENCES[language])) is None
    others = [name for name in SENTENCES if name != language]
    assert LanguageFilter(others).judge(document(SENTENCES[language])) == f"language: {language}"


def test_classics_are_of_their_language() -> None:
    assert language_shares(CHAPTER) == {"zh": 1}
    assert language_shares(PLAY) == {"en": 1}
    assert set(language_shares(ESSAY)) == {"zh", "en"}


def test_chinese_among_commands_and_names_is_chinese() -> None:
    manual = (
        "运行 `git rebase --interactive HEAD~3` 之后，用 vim 把 pick 改成 squash，保存并退出，提交就合并了。"
        "变量 GIT_EDITOR EDITOR VISUAL 依次生效；若一个也没有设置，就使用缺省的编辑器 vi 打开文件。"
    )
    assert LanguageFilter(["zh"]).judge(document(manual * 3)) is None


def test_a_text_in_two_wanted_languages_is_kept_and_in_one_of_them_dropped() -> None:
    both = SENTENCES["zh"] + SENTENCES["en"] + SENTENCES["en"]
    assert LanguageFilter(["zh", "en"]).judge(document(both)) is None
    assert LanguageFilter(["zh"]).judge(document(both)) == "language: en"


def test_an_unknown_language_in_latin_script_is_not_english() -> None:
    indonesian = (
        "Model ini membaca teks, gambar, dan suara secara bersamaan, lalu belajar dengan bobot acak tanpa "
        "bagian yang sudah dibuat oleh orang lain sebelumnya, sehingga semua orang dapat memeriksa hasilnya."
    )
    assert LanguageFilter(["en"]).judge(document(indonesian)) == "language: another language in Latin script"
    assert LanguageFilter([ANY_LATIN]).judge(document(indonesian)) is None


@pytest.mark.parametrize("text", ["", "Bonjour!", "3.14 = π", "Москва", "こんにちは", "Le chat noir"])
def test_what_is_too_short_to_tell_is_kept(text: str) -> None:
    assert LanguageFilter(["zh", "en"]).judge(document(text)) is None


def test_the_share_is_an_argument() -> None:
    text = SENTENCES["zh"] + SENTENCES["ko"]
    assert LanguageFilter(["zh"], min_share=0.5).judge(document(text)) is None
    assert LanguageFilter(["zh"], min_share=0.99).judge(document(text)) == "language: ko"


@pytest.mark.parametrize("languages", [["klingon"], []])
def test_a_language_that_cannot_be_told_is_refused(languages: list[str]) -> None:
    with pytest.raises(ValueError, match="take from"):
        LanguageFilter(languages)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        LanguageFilter(min_share=2)
