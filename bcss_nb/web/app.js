'use strict'
const $ = id => document.getElementById(id)
const state = { found: null, file: null, labels: null, uncertainty: null, hidden: new Set(), asked: 0, x: 0, y: 0, scale: 1 }

// ---- asking -------------------------------------------------------------------------------------------------------
function headers(accept) {
  const h = { accept }
  if ($('key').value) h['X-API-Key'] = $('key').value
  return h
}

async function complain(response) {
  let detail = ''
  try { detail = (await response.json()).detail } catch { }
  const wait = response.headers.get('retry-after')
  const words = { 401: 'The service asks for an API key: open “Resolution and key”.', 503: `The service is busy. Try again in ${wait || 'a few'} s.` }
  return new Error(words[response.status] || detail || `The service answered ${response.status}.`)
}

async function fetchAs(url, accept) {
  const response = await fetch(url, { headers: headers(accept) })
  if (!response.ok) throw await complain(response)
  return response.blob()
}

async function send(file) {
  const turn = ++state.asked
  if (matchMedia('(max-width: 44rem)').matches) $('view').scrollIntoView()
  say('Looking at ' + (file.name || 'the picture') + ' …', true)
  const form = new FormData()
  form.append('image', file, file.name || 'picture')
  if ($('mpp').value) form.append('mpp', $('mpp').value)
  try {
    const response = await fetch('predict', { method: 'POST', body: form, headers: headers('application/json') })
    if (!response.ok) throw await complain(response)
    const found = await response.json()
    const [classes, uncertainty] = await Promise.all(['classes', 'uncertainty'].map(k => fetchAs(found.links[k], 'image/png').then(pixelsOf)))
    if (turn !== state.asked) return
    Object.assign(state, { found, file, hidden: new Set(), labels: indexed(classes, found), uncertainty })
    await show()
  } catch (e) {
    if (turn === state.asked) fail(e instanceof TypeError ? 'The service cannot be reached. Is it running?' : e.message)
  }
}

function say(text, busy = false) {
  $('error').hidden = true
  $('status').textContent = text
  $('status').classList.toggle('busy', busy)
}

function fail(text) {
  say('')
  $('error').textContent = text
  $('error').hidden = false
}

// ---- maps ---------------------------------------------------------------------------------------------------------
async function pixelsOf(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: 'none' })
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height)
  const context = canvas.getContext('2d', { willReadFrequently: true })
  context.drawImage(bitmap, 0, 0)
  return context.getImageData(0, 0, bitmap.width, bitmap.height)
}

const rgb = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16))

function indexed(image, found) {
  const at = new Map(Object.values(found.colors).map((c, i) => { const [r, g, b] = rgb(c); return [r << 16 | g << 8 | b, i] }))
  const out = new Uint8Array(image.width * image.height), d = image.data
  for (let i = 0, j = 0; i < out.length; i++, j += 4) out[i] = at.get(d[j] << 16 | d[j + 1] << 8 | d[j + 2]) ?? 255
  return out
}

function paint() {
  const { found, labels, uncertainty, hidden } = state, { map_width: w, map_height: h } = found
  const canvas = $('map'), colors = Object.values(found.colors).map(rgb), names = Object.keys(found.colors)
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h }
  const context = canvas.getContext('2d'), out = context.createImageData(w, h), d = out.data
  const asUncertainty = document.querySelector('[name=what]:checked').value === 'uncertainty'
  const shown = names.map(n => !hidden.has(n))
  for (let y = 0, i = 0; y < h; y++) for (let x = 0; x < w; x++, i++) {
    const c = labels[i], j = 4 * i
    if (c === 255 || !shown[c]) continue
    if (asUncertainty) { d[j] = 0; d[j + 1] = 190; d[j + 2] = 90; d[j + 3] = uncertainty.data[4 * ((y >> 1) * uncertainty.width + (x >> 1))] }
    else { d[j] = colors[c][0]; d[j + 1] = colors[c][1]; d[j + 2] = colors[c][2]; d[j + 3] = 255 }
  }
  context.putImageData(out, 0, 0)
  canvas.style.opacity = $('opacity').value / 100
}

// ---- showing ------------------------------------------------------------------------------------------------------
const picture = file => new Promise((good, bad) => {
  const img = $('picture'), old = img.src
  img.onload = good; img.onerror = bad
  img.src = URL.createObjectURL(file)
  if (old.startsWith('blob:')) URL.revokeObjectURL(old)
})

async function show() {
  const { found, file } = state
  try { await picture(file) } catch {                      // a TIFF: browsers do not draw it, the service does
    const form = new FormData(); form.append('image', file, file.name); form.append('mpp', found.mpp)
    const response = await fetch('predict', { method: 'POST', body: form, headers: headers('image/png') })
    if (!response.ok) throw await complain(response)
    await picture(await response.blob())
    $('opacity').value = 0
  }
  $('world').style.width = found.map_width + 'px'; $('world').style.height = found.map_height + 'px'
  for (const id of ['stage', 'zoom', 'legend']) $(id).hidden = false
  rows(); paint(); fit()
  const assumed = found.mpp_from === 'assumed' ? ', assumed: the file does not say' : ''
  $('facts').textContent = `${found.width} × ${found.height} pixels of ${found.mpp} µm${assumed}. Model ${found.model}, ${found.engine}, ${(found.seconds + found.cleaning_seconds).toFixed(2)} s.`
  const most = Object.entries(found.classes).sort((a, b) => b[1].area_mm2 - a[1].area_mm2)[0]
  say(most[1].share ? `Done: mostly ${most[0]}, ${Math.round(100 * most[1].share)} % of the tissue.` : 'Done: no tissue was found.')
}

function rows() {
  const body = $('rows'), { found } = state
  body.replaceChildren(...Object.entries(found.classes).map(([name, a]) => {
    const row = document.createElement('tr'), label = document.createElement('label'), box = document.createElement('input'), chip = document.createElement('span')
    box.type = 'checkbox'; box.checked = true; box.setAttribute('aria-label', 'Show ' + name)
    box.onchange = () => { state.hidden[box.checked ? 'delete' : 'add'](name); paint() }
    chip.className = 'chip'; chip.style.background = found.colors[name]
    label.append(box, chip, name)
    const percent = v => v === null ? '–' : Math.round(100 * v) + ' %'
    for (const content of [label, a.area_mm2.toFixed(4), percent(a.share), percent(a.uncertainty)]) { const td = document.createElement('td'); td.append(content); row.append(td) }
    return row
  }))
}

function place() {
  $('world').style.transform = `translate(${state.x}px, ${state.y}px) scale(${state.scale})`
  $('world').classList.toggle('near', state.scale > 3)
}

function fit() {
  const s = $('stage'), { map_width: w, map_height: h } = state.found
  state.scale = Math.min(s.clientWidth / w, s.clientHeight / h)
  state.x = (s.clientWidth - w * state.scale) / 2; state.y = (s.clientHeight - h * state.scale) / 2
  place()
}

function zoom(factor, cx = $('stage').clientWidth / 2, cy = $('stage').clientHeight / 2) {
  const next = Math.min(40, Math.max(.02, state.scale * factor)), f = next / state.scale
  Object.assign(state, { x: cx - (cx - state.x) * f, y: cy - (cy - state.y) * f, scale: next })
  place()
}

// ---- saving -------------------------------------------------------------------------------------------------------
function download(blob, ending) {
  const a = document.createElement('a')
  a.href = URL.createObjectURL(blob)
  a.download = (state.file.name || 'picture').replace(/\.[^.]*$/, '') + ending
  a.click()
  setTimeout(() => URL.revokeObjectURL(a.href), 1000)
}

async function save(kind) {
  try {
    if (kind === 'json') return download(new Blob([JSON.stringify(state.found, null, 2)], { type: 'application/json' }), '.json')
    if (kind === 'geojson') return download(await fetchAs(state.found.links.geojson, 'application/geo+json'), '.geojson')
    const canvas = new OffscreenCanvas(state.found.map_width, state.found.map_height), context = canvas.getContext('2d')
    context.drawImage($('picture'), 0, 0, canvas.width, canvas.height)
    context.globalAlpha = $('opacity').value / 100
    context.drawImage($('map'), 0, 0)
    download(await canvas.convertToBlob({ type: 'image/png' }), '.overlay.png')
  } catch (e) { fail(e.message) }
}

// ---- hands --------------------------------------------------------------------------------------------------------
const drop = $('drop'), stage = $('stage'), fingers = new Map()
$('file').onchange = e => { if (e.target.files[0]) send(e.target.files[0]); e.target.value = '' }
for (const where of [drop, $('view')]) {
  where.addEventListener('dragover', e => { e.preventDefault(); drop.classList.add('over') })
  where.addEventListener('dragleave', () => drop.classList.remove('over'))
  where.addEventListener('drop', e => { e.preventDefault(); drop.classList.remove('over'); if (e.dataTransfer.files[0]) send(e.dataTransfer.files[0]) })
}
for (const b of document.querySelectorAll('[data-example]')) b.onclick = async () => {
  try { const blob = await fetchAs(b.dataset.example, 'image/*'); send(new File([blob], b.dataset.example.split('/').pop(), { type: blob.type })) } catch (e) { fail(e.message) }
}
for (const b of document.querySelectorAll('[data-save]')) b.onclick = () => save(b.dataset.save)
for (const r of document.querySelectorAll('[name=what]')) r.onchange = paint
$('opacity').oninput = () => { $('map').style.opacity = $('opacity').value / 100 }
$('in').onclick = () => zoom(1.5); $('out').onclick = () => zoom(1 / 1.5); $('fit').onclick = fit
stage.addEventListener('wheel', e => { e.preventDefault(); const r = stage.getBoundingClientRect(); zoom(Math.exp(-e.deltaY / 400), e.clientX - r.left, e.clientY - r.top) }, { passive: false })
stage.addEventListener('pointerdown', e => { stage.setPointerCapture(e.pointerId); fingers.set(e.pointerId, e); stage.classList.add('moving') })
stage.addEventListener('pointermove', e => {
  const before = fingers.get(e.pointerId)
  if (!before) return
  if (fingers.size === 1) { state.x += e.clientX - before.clientX; state.y += e.clientY - before.clientY; place() }
  else if (fingers.size === 2) {
    const other = [...fingers.values()].find(f => f.pointerId !== e.pointerId), r = stage.getBoundingClientRect()
    const far = f => Math.hypot(f.clientX - other.clientX, f.clientY - other.clientY)
    zoom(far(e) / Math.max(1, far(before)), (e.clientX + other.clientX) / 2 - r.left, (e.clientY + other.clientY) / 2 - r.top)
  }
  fingers.set(e.pointerId, e)
})
for (const end of ['pointerup', 'pointercancel']) stage.addEventListener(end, e => { fingers.delete(e.pointerId); if (!fingers.size) stage.classList.remove('moving') })
stage.addEventListener('keydown', e => {
  const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[e.key]
  if (step) { state.x += step[0]; state.y += step[1]; place() }
  else if (e.key === '+' || e.key === '=') zoom(1.25)
  else if (e.key === '-') zoom(.8)
  else if (e.key === '0') fit()
  else return
  e.preventDefault()
})
addEventListener('resize', () => { if (state.found) fit() })
