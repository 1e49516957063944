// Word differences of two texts: which words are in one and not, in that order, in the other.
const MOST_CELLS = 4e6; // beyond this a table of common words would take too long

function words(text) {
  // a Chinese, Japanese or Korean character is a word of its own
  return text.match(/\s+|[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[\p{L}\p{N}_'’]+|[^]/gu) ?? [];
}

// For each text its words, [word, is in the other], by the longest common subsequence.
export function compare(left, right) {
  const [a, b] = [words(left), words(right)];
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
  const told = (all, kept) => all.map((word, i) => [word, kept[i] || !word.trim()]);
  return [told(a, keptA), told(b, keptB)];
}
