"""GLUE's tasks: `GLUE_TASKS` says what the files of each hold, where they lie, how it is judged."""

from __future__ import annotations

import dataclasses

_URL = 'https://dl.fbaipublicfiles.com/glue/data'
_ENTAILMENT = ('entailment', 'not_entailment')

# Microsoft's own file of MRPC, which SentEval hosts, and GLUE's list of what of it is for
# development.
MRPC_TRAIN, MRPC_DEV = 'msr_paraphrase_train.txt', 'mrpc_dev_ids.tsv'
MRPC_FILES = {
  MRPC_TRAIN: (
    f'https://dl.fbaipublicfiles.com/senteval/senteval_data/{MRPC_TRAIN}',
    '60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89',
  ),
  MRPC_DEV: (
    f'{_URL}/{MRPC_DEV}',
    '971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7',
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueTask:
  """One of GLUE's tasks.

  Attributes:
    name: of the task.
    folder: of its files, train.tsv and dev.tsv.
    texts: columns of the text or of both.
    label: column of the label.
    labels: what stands there, class 0 first.
    names: of the classes, where numbers stand there.
    columns: all columns, where the files have no header.
    num_train: examples of the original, or the numbers that readers count.
    num_dev: the same of the development set.
    metrics: GLUE's, names in `lra_tasks.metrics.METRICS`.
    archive: file name at GLUE's address; '' of MRPC, which is made of `MRPC_FILES`.
    sha256: of the archive, as TFDS records it.
    contents: what `glue_files.digest_splits` gives for the original, or '' where that is not known.
    dev: name of the development set.
    mismatched: name of a second development set, or ''.
    ragged: whether the original has rows without some of the columns, which all readers skip.
    description: what is to be told.
    citation: BibTeX, beside GLUE's.
  """

  name: str
  folder: str
  texts: tuple[str, ...]
  label: str = 'label'
  labels: tuple[str, ...] = ('0', '1')
  names: tuple[str, ...] = ()
  columns: tuple[str, ...] = ()
  num_train: tuple[int, ...]
  num_dev: int
  metrics: tuple[str, ...] = ('accuracy',)
  archive: str = ''
  sha256: str = ''
  contents: str = ''
  dev: str = 'dev'
  mismatched: str = ''
  ragged: bool = False
  description: str
  citation: str

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names of the classes, class 0 first."""
    return self.names or self.labels

  @property
  def files(self) -> dict[str, str]:
    """Names of the files of the splits, without ending."""
    files = {'train': 'train', 'test': self.dev}
    return files | ({'test_mismatched': self.mismatched} if self.mismatched else {})

  @property
  def url(self) -> str:
    """Where the data comes from."""
    return f'{_URL}/{self.archive}' if self.archive else MRPC_FILES[MRPC_TRAIN][0]

  @property
  def inputs(self) -> list[str]:
    """Names of the texts in records: inputs1, and of pairs inputs2."""
    return [f'inputs{k + 1}' for k in range(len(self.texts))]


# The table.


def _cite(key: str, kind: str, **fields: str | int) -> str:
  lines = [f'  {name}={{{value}}}' for name, value in fields.items()]
  return '\n'.join([f'@{kind}{{{key},', ',\n'.join(lines), '}'])


GLUE_TASKS: dict[str, GlueTask] = {
  task.name: task
  for task in [
    GlueTask(
      name='sst2',
      folder='SST-2',
      names=('negative', 'positive'),
      texts=('sentence',),
      num_train=(67_349,),
      num_dev=872,
      archive='SST-2.zip',
      sha256='d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa',
      contents='39192d9d20ffef36ce2228d0482327ff9d870e6601ce977fc79d626956f97c62',
      description='Phrases of film reviews: negative (0) or positive (1)?',
      citation=_cite(
        'socher2013recursive',
        'inproceedings',
        title='Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank',
        author='Socher, Richard and Perelygin, Alex and Wu, Jean and Chuang, Jason and Manning, '
        'Christopher D. and Ng, Andrew Y. and Potts, Christopher',
        booktitle='Empirical Methods in Natural Language Processing',
        year=2013,
      ),
    ),
    GlueTask(
      name='mrpc',
      folder='MRPC',
      texts=('#1 String', '#2 String'),
      label='Quality',
      names=('not_equivalent', 'equivalent'),
      num_train=(3668,),
      num_dev=408,
      metrics=('accuracy', 'f1'),
      contents='7a2d0bba146473fcc112a3d5ca6ecfadc92a6a2135c2a382701b248c63a1c667',
      description='Pairs of sentences from news: do they mean the same (1)?',
      citation=_cite(
        'dolan2005automatically',
        'inproceedings',
        title='Automatically Constructing a Corpus of Sentential Paraphrases',
        author='Dolan, William B. and Brockett, Chris',
        booktitle='International Workshop on Paraphrasing',
        year=2005,
      ),
    ),
    GlueTask(
      name='qqp',
      folder='QQP',
      texts=('question1', 'question2'),
      label='is_duplicate',
      names=('not_duplicate', 'duplicate'),
      # Readers that take a carriage return for the end of a line lose three rows.
      num_train=(363_846, 363_849),
      num_dev=40_430,
      metrics=('accuracy', 'f1'),
      archive='QQP-clean.zip',
      sha256='40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0',
      ragged=True,
      description='Pairs of questions that users of Quora asked: do they mean the same (1)?',
      citation=_cite(
        'iyer2017first',
        'misc',
        title='First Quora Dataset Release: Question Pairs',
        author="Iyer, Shankar and Dandekar, Nikhil and Csernai, Korn{\\'e}l",
        year=2017,
      ),
    ),
    GlueTask(
      name='mnli',
      folder='MNLI',
      texts=('sentence1', 'sentence2'),
      label='gold_label',
      labels=('entailment', 'neutral', 'contradiction'),
      num_train=(392_702,),
      num_dev=9815,
      archive='MNLI.zip',
      sha256='e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633',
      dev='dev_matched',
      mismatched='dev_mismatched',
      description='Premise and hypothesis: entailment (0), neutral (1) or contradiction (2)?',
      citation=_cite(
        'williams2018broad',
        'inproceedings',
        title='A Broad-Coverage Challenge Corpus for Sentence Understanding through Inference',
        author='Williams, Adina and Nangia, Nikita and Bowman, Samuel R.',
        booktitle='North American Chapter of the Association for Computational Linguistics',
        year=2018,
      ),
    ),
    GlueTask(
      name='qnli',
      folder='QNLI',
      texts=('question', 'sentence'),
      labels=_ENTAILMENT,
      num_train=(104_743,),
      num_dev=5463,
      archive='QNLIv2.zip',
      sha256='e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5',
      description='Question and sentence: does the sentence hold the answer (0)?',
      citation=_cite(
        'rajpurkar2016squad',
        'inproceedings',
        title='{SQuAD}: 100,000+ Questions for Machine Comprehension of Text',
        author='Rajpurkar, Pranav and Zhang, Jian and Lopyrev, Konstantin and Liang, Percy',
        booktitle='Empirical Methods in Natural Language Processing',
        year=2016,
      ),
    ),
    GlueTask(
      name='wnli',
      folder='WNLI',
      names=_ENTAILMENT[::-1],
      texts=('sentence1', 'sentence2'),
      num_train=(635,),
      num_dev=71,
      archive='WNLI.zip',
      sha256='ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46',
      contents='295c8b55e6b8abd522a997186f6840e2d2ba7bff1bd21b9a46a2ca8daeb6d5a3',
      description='Two sentences: does the second one resolve the pronoun of the first right (1)?',
      citation=_cite(
        'levesque2012winograd',
        'inproceedings',
        title='The {W}inograd Schema Challenge',
        author='Levesque, Hector J. and Davis, Ernest and Morgenstern, Leora',
        booktitle='Principles of Knowledge Representation and Reasoning',
        year=2012,
      ),
    ),
    GlueTask(
      name='rte',
      folder='RTE',
      texts=('sentence1', 'sentence2'),
      labels=_ENTAILMENT,
      num_train=(2490,),
      num_dev=277,
      archive='RTE.zip',
      sha256='6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee',
      contents='71852d25316afd13e5a9d04a103c034b05fbe85ea76b165002b05996a878749d',
      description='Premise and hypothesis: does the first entail the second (0)?',
      citation=_cite(
        'bentivogli2009fifth',
        'inproceedings',
        title='The Fifth {PASCAL} Recognizing Textual Entailment Challenge',
        author='Bentivogli, Luisa and Dagan, Ido and Dang, Hoa Trang and Giampiccolo, Danilo and '
        'Magnini, Bernardo',
        booktitle='Text Analysis Conference',
        year=2009,
      ),
    ),
    GlueTask(
      name='cola',
      folder='CoLA',
      names=('unacceptable', 'acceptable'),
      texts=('sentence',),
      columns=('source', 'label', 'mark', 'sentence'),
      num_train=(8551,),
      num_dev=1043,
      metrics=('matthews',),
      archive='CoLA.zip',
      sha256='f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff',
      contents='757d55efc200c50838b47342e8d43ef84d49b9e9d72b4b1aad7949a823378f53',
      description='Sentences of linguistic literature: is it acceptable English (1)?',
      citation=_cite(
        'warstadt2019neural',
        'article',
        title='Neural Network Acceptability Judgments',
        author='Warstadt, Alex and Singh, Amanpreet and Bowman, Samuel R.',
        journal='Transactions of the Association for Computational Linguistics',
        year=2019,
      ),
    ),
  ]
}
