// mma(bm=64,bn=32,wm=2,wn=1,wk=2,depth=128,stages=2,split=2,cluster=1)
// Launch(grid=(2, 2, 1), threads=128, values=(60, 48, 432, 48, 48, 5, 6, 288, 48, 48, 48, 6, 5, 1440, 288, 48), suffix='', shared=45056, cluster=(1, 2, 1), maps=())

DEVICE uint32_t load_word(const char *p) { return *reinterpret_cast<const uint32_t *>(p); }
/* x becomes x + low, both TF32. */
template <int N> DEVICE void split(uint32_t (&x)[N], uint32_t (&low)[N]) {
  UNROLL for (int i = 0; i < N; i++) {
    const float whole = __uint_as_float(x[i]), high = to_tf32(whole);
    x[i] = __float_as_uint(high);
    low[i] = __float_as_uint(to_tf32(whole - high));
  }
}
/* x becomes the nearest TF32 numbers. */
template <int N> DEVICE void round_tf32(uint32_t (&x)[N]) {
  UNROLL for (int i = 0; i < N; i++) x[i] = __float_as_uint(to_tf32(__uint_as_float(x[i])));
}

/* Where the 16-byte chunk of a tile lies whose rows are ROW bytes. */
template <int ROW> DEVICE int swizzled(int row, int chunk) {
  constexpr int CHUNKS = ROW / 16, EACH = CHUNKS < 8 ? 8 / CHUNKS : 1;
  return row * ROW + (chunk ^ row / EACH % (CHUNKS < 8 ? CHUNKS : 8)) * 16;
}
/* The same for tiles of floats that are read one by one, from 4 rows and 8 columns at a time. */
template <int ROW> DEVICE int swizzled_floats(int row, int chunk) {
  return row * ROW + (chunk ^ row % 4 * 2 % (ROW / 16)) * 16;
}
/* Where a column of b lies among 32: in the order in which fragments come, such that the sums which
   a lane has of 4 fragments are those of 8 consecutive columns. */
DEVICE int turned_row(int n) { return n / 32 * 32 + n / 2 % 4 * 8 + n / 8 % 4 * 2 + n % 2; }
template <int BYTES> DEVICE void copy_piece(char *to, const void *from, bool valid) {
  if constexpr (BYTES == 16) cp_async16(to, from, valid);
  else if constexpr (BYTES == 8) cp_async8(to, from, valid);
  else cp_async4(to, from, valid);
}
struct Fetched { Vec<half, 8> e2[1]; };
extern "C" __global__ void __launch_bounds__(128) NAME(
  const half *p0, const half *__restrict__ p1, const half *__restrict__ p2, const half *p3, half *p4, int v0, int v1, int v2, int v3, int v4, int v5, int v6, int v7, int v8, int v9, int v10, int v11, int v12, int v13, int v14, int v15) {
grid_launch();
cluster_arrive();
char *const shared = shared_memory();
const int tid = threadIdx.x, lane = tid % 32;
const int warp_m = tid / 32 % 2, warp_n = tid / 64 % 1, warp_k = tid / 64;
const int m_size = v0, n_size = v1, k_tiles = ceildiv(v2, 64);
const int tiles_m = ceildiv(m_size, 64), tiles_n = ceildiv(n_size, 32);
const int n_tile = blockIdx.x % tiles_n, m_tile = blockIdx.x / tiles_n % tiles_m;
const int batch = blockIdx.x / tiles_n / tiles_m, part = blockIdx.y;
const int m0 = m_tile * 64, n0 = n_tile * 32;
const int first = part * k_tiles / 2, last = (part + 1) * k_tiles / 2;
const char *b_from = reinterpret_cast<const char *>(p1) + tid * 16
    + ((int64_t)(batch * tiles_n + n_tile) * k_tiles + first) * 4096;
auto load_b = [&](char *to) {
UNROLL for (int i = 0; i < 2; i++) cp_async16(to + (tid + i * 128) * 16, b_from + i * 2048, true);
b_from += 4096;
};

UNROLL for (int s = 0; s < 1; s++) if (first + s < last) { load_b(shared + s * 12288 + 8192); }
const half *e1 = p2 + 0;
const half *e2 = p3 + 0;
half *y = p4 + 0;
const int f_column = n0 + tid % 4 * 8, f_last = n_size - 8;
const int f_first = tid / 4, f_row = m0 + part * 32 + f_first;
const int f_rows = f_column <= f_last ? imin(m_size - f_row, 32 - f_first) : 0;
float c1[8];
UNROLL for (int i = 0; i < 1; i++) {
  const auto piece = load_vec<half, 8>(e1 + 0 + (imin(f_column, f_last) + i * 8));
  UNROLL for (int j = 0; j < 8; j++) c1[i * 8 + j] = to_float(piece.v[j]);
}

const half *a_from = p0 + 0;
const int a_piece = tid % 8, a_row = tid / 8;
int a_at[4];
const int a_plane[2] = {v5, v6};
const int a_channels = v9;
int a_c = (first * 64 + a_piece * 8) % a_channels, a_v = (first * 64 + a_piece * 8) / a_channels;
int a_u = a_v / 3;
a_v %= 3;
const int a_steps[2] = {v7 * 1, v8 * 1};
int a_h[4], a_w[4];
UNROLL for (int i = 0; i < 4; i++) {
const int row = imin(m0 + a_row + i * 16, m_size - 1);
const int line = (uint32_t)row / (uint32_t)v11;
const int image = (uint32_t)line / (uint32_t)v12;
a_h[i] = (line - image * v12) * 1 - 1;
a_w[i] = (row - line * v11) * 1 - 1;
a_at[i] = image * v13 + a_h[i] * v14
    + a_w[i] * v15;
}
auto load_a = [&](char *to) {
const int at = a_u * a_steps[0] + a_v * a_steps[1] + a_c;
const bool inside = a_u < 3;
UNROLL for (int i = 0; i < 4; i++) {
copy_piece<16>(to + swizzled<128>(a_row + i * 16, a_piece), a_from + a_at[i] + at, inside && (uint32_t)(a_h[i] + a_u * 1) < (uint32_t)a_plane[0] && (uint32_t)(a_w[i] + a_v * 1) < (uint32_t)a_plane[1]);
}
a_c += 64;
while (a_c >= a_channels) {
  a_c -= a_channels;
  if (++a_v == 3) { a_v = 0; a_u++; }
}
};

grid_wait();
UNROLL for (int s = 0; s < 1; s++) {
  if (first + s < last) { load_a(shared + s * 12288 + 0); }
  cp_async_commit();
}

Fetched f_own[1];
UNROLL for (int r = 0; r < 1; r++) if (const int row = f_row + (0 + r) * 32; (0 + r) * 32 < f_rows) {
UNROLL for (int i = 0; i < 1; i++) f_own[r].e2[i] = load_vec<half, 8>(e2 + (row) * v3 + (f_column + i * 8));
}

float sums[2][4][4] = {};
auto fragments_a = [&](const char *a, int step, uint32_t (&x)[2][4]) {
  UNROLL for (int i = 0; i < 2; i++) ldmatrix_x4(x[i], a + swizzled<128>(warp_m * 32 + i * 16 + lane % 16, step * 2 + lane / 16));
};
auto fragments_b = [&](const char *b, int step, uint32_t (&x)[4][2]) {
  UNROLL for (int j = 0; j < 4; j += 2) {
    uint32_t both[4];
    ldmatrix_x4(both, b + swizzled<128>(warp_n * 32 + j * 8 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
    UNROLL for (int i = 0; i < 4; i++) x[j + i / 2][i % 2] = both[i];
  }
};
auto multiply = [&](const char *a, const char *b) {
  uint32_t x[2][2][4], y[2][4][2];
  const int step = warp_k * 2;
  fragments_a(a, step, x[0]);
  fragments_b(b, step, y[0]);
  UNROLL for (int s = 0; s < 2; s++) {
    const int now = s % 2;
    if (s + 1 < 2) {
      fragments_a(a, step + s + 1, x[1 - now]);
      fragments_b(b, step + s + 1, y[1 - now]);
    }
    UNROLL for (int i = 0; i < 2; i++)
      UNROLL for (int j = 0; j < 4; j++) mma(sums[i][j], x[now][i], y[now][j], Tag<half>());
  }
};
int from = 0, into = 1;
for (int t = first; t < last; t++) {
  cp_async_wait<0>();
  __syncthreads();
  if (t + 1 < last) {
    load_a(shared + into * 12288);
    load_b(shared + into * 12288 + 8192);
  }
  cp_async_commit();
  multiply(shared + from * 12288, shared + from * 12288 + 8192);
  from = from == 1 ? 0 : from + 1;
  into = into == 1 ? 0 : into + 1;
}
cp_async_wait<0>();

float *const all = reinterpret_cast<float *>(shared + 24576);
cluster_wait();
UNROLL for (int i = 0; i < 4; i++) {
  const int row = warp_m * 32 + i * 8 + lane / 4;
  const uint32_t to = cluster_address(
      all + (part * 2 + warp_k) * 1152 + row % 32 * 36, row / 32);
  UNROLL for (int j = 0; j < 2; j++) {
    const int column = warp_n * 32 + j / 2 * 32 + lane % 4 * 8;
    cluster_store(to + (column + j % 2 * 4) * 4, Vec<float, 4>{{sums[i / 2][j * 2 + 0][i % 2 * 2 + 0], sums[i / 2][j * 2 + 0][i % 2 * 2 + 1], sums[i / 2][j * 2 + 1][i % 2 * 2 + 0], sums[i / 2][j * 2 + 1][i % 2 * 2 + 1]}});
  }
}
cluster_sync();
for (int r0 = 0; r0 < 1; r0 += 1) {
UNROLL for (int r = 0; r < 1; r++) if (const int row = f_row + (r0 + r) * 32; (r0 + r) * 32 < f_rows) {
  float sum[8] = {};
  const float *from = all + (f_first + (r0 + r) * 32) * 36 + tid % 4 * 8;
  UNROLL for (int layer = 0; layer < 4; layer++)
    UNROLL for (int i = 0; i < 8; i += 4) {
      const auto part = load_vec<float, 4>(from + layer * 1152 + i);
      UNROLL for (int j = 0; j < 4; j++) sum[i + j] += part.v[j];
    }
UNROLL for (int i = 0; i < 1; i++) {
  Vec<uint32_t, 4> piece;
  UNROLL for (int j = 0; j < 4; j++) piece.v[j] = pack2([&] { float e__0 = sum[i * 8 + j * 2 + 0]; float e__1 = c1[i * 8 + j * 2 + 0]; float e__2 = (e__0 + e__1); float e__3 = to_float(f_own[r].e2[(i * 8 + j * 2 + 0) / 8].v[(i * 8 + j * 2 + 0) % 8]); float e__4 = (e__2 + e__3); float e__5 = nan_max(e__4, 0.0f); return e__5; }(), [&] { float e__0 = sum[i * 8 + j * 2 + 1]; float e__1 = c1[i * 8 + j * 2 + 1]; float e__2 = (e__0 + e__1); float e__3 = to_float(f_own[r].e2[(i * 8 + j * 2 + 1) / 8].v[(i * 8 + j * 2 + 1) % 8]); float e__4 = (e__2 + e__3); float e__5 = nan_max(e__4, 0.0f); return e__5; }(), Tag<half>());
  store_vec(reinterpret_cast<uint32_t *>(y + (row) * v4 + f_column + i * 8), piece);
}
}
}
}
