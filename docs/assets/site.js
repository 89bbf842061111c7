// One button for all folded sources of a chapter, and the keyboard's focus on what scrolls.
document.addEventListener('DOMContentLoaded', () => {
  const folded = document.querySelectorAll('details.source'), where = document.querySelector('.where');
  document.querySelectorAll('.scroll, .md-typeset pre > code').forEach(e => { if (e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight) e.tabIndex = 0 });
  if (!folded.length || !where) return;
  const button = Object.assign(document.createElement('button'), { className: 'unfold', type: 'button', textContent: 'Show all source' });
  button.onclick = () => {
    const open = ![...folded].every(d => d.open);
    folded.forEach(d => d.open = open);
    button.textContent = open ? 'Hide all source' : 'Show all source';
  };
  where.append(' · ', button);
});
