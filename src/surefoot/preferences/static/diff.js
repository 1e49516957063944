// Word differences of two texts: which words are in one and not, in that order, in the other.
const MOST_CELLS = 4e6; // beyond this a table of common words would take too long

function words(text) {
  // a Chinese, Japanese or Korean character is a word of its own
  return text.match(/\s+|[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[\p{L}\p{N}_'’]+|[^]/gu) ?? [];
}

// For each text its parts, [text, is in the other], by the longest common subsequence of words. Spaces take no part in it: there
// are so many that they would outweigh the words.
export function compare(left, right) {
  const texts = [words(left), words(right)];
  const [a, b] = texts.map((all) => all.filter((word) => word.trim()));
  const [keptA, keptB] = [new Array(a.length).fill(false), new Array(b.length).fill(false)];
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) keptA[start] = keptB[start++] = true;
  const [n, m] = [a.length - start, b.length - start];
  if (n * m <= MOST_CELLS) {
    const width = m + 1;
    const lengths = new Uint16Array((n + 1) * width);
    for (let i = n - 1; i >= 0; i--)
      for (let j = m - 1; j >= 0; j--)
        lengths[i * width + j] = a[start + i] === b[start + j]
          ? lengths[(i + 1) * width + j + 1] + 1
          : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
    for (let i = 0, j = 0; i < n && j < m;) {
      if (a[start + i] === b[start + j]) keptA[start + i++] = keptB[start + j++] = true;
      else if (lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]) i++;
      else j++;
    }
  }
  return [parts(texts[0], keptA), parts(texts[1], keptB)];
}

// Words and spaces as few parts: a space between two words that differ belongs to them.
function parts(all, kept) {
  let next = 0;
  const shared = all.map((word) => (word.trim() ? kept[next++] : null));
  const runs = [];
  all.forEach((text, i) => {
    const isShared = shared[i] ?? (shared[i - 1] !== false || shared[i + 1] !== false);
    if (runs.at(-1)?.[1] === isShared) runs.at(-1)[0] += text;
    else runs.push([text, isShared]);
  });
  return runs;
}
