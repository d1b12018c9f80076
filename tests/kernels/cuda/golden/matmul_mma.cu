// mma(bm=32,bn=32,wm=1,wn=2,wk=1,depth=64,stages=3,split=1,cluster=0)
// Launch(grid=(6, 1, 1), threads=64, values=(20, 24, 32, 24, 768, 32, 32, 480, 640, 32, 32), suffix='', shared=12288, cluster=(1, 1, 1), maps=())

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
struct Fetched { };
extern "C" __global__ void __launch_bounds__(64) NAME(
  const half *p0, const half *p1, half *p2, int v0, int v1, int v2, int v3, int v4, int v5, int v6, int v7, int v8, int v9, int v10) {
grid_launch();

char *const shared = shared_memory();
const int tid = threadIdx.x, lane = tid % 32;
const int warp_m = tid / 32 % 1, warp_n = tid / 32 % 2, warp_k = tid / 64;
const int m_size = v0, n_size = v1, k_tiles = ceildiv(v2, 32);
const int tiles_m = ceildiv(m_size, 32), tiles_n = ceildiv(n_size, 32);
const int n_tile = blockIdx.x % tiles_n, m_tile = blockIdx.x / tiles_n % tiles_m;
const int batch = blockIdx.x / tiles_n / tiles_m, part = blockIdx.y;
const int m0 = m_tile * 32, n0 = n_tile * 32;
const int first = part * k_tiles / 1, last = (part + 1) * k_tiles / 1;
const half *b_from = p1 + (batch) * v4;
const int b_piece = tid % 4, b_row = tid / 4;
int b_at[2];
int b_k = first * 32 + b_piece * 8;
const int b_depth = v5;
UNROLL for (int i = 0; i < 2; i++) {
const int row = imin(n0 + b_row + i * 16, n_size - 1);
b_at[i] = (row) * v6;
}
auto load_b = [&](char *to) {
const int at = b_k;
UNROLL for (int i = 0; i < 2; i++) {
copy_piece<16>(to + swizzled<64>(b_row + i * 16, b_piece), b_from + b_at[i] + at, true);
}
b_k += 32;
};

UNROLL for (int s = 0; s < 2; s++) if (first + s < last) { }
half *y = p2 + (batch) * v7;
const int f_column = n0 + tid % 4 * 8, f_last = n_size - 8;
const int f_first = tid / 4, f_row = m0 + f_first;
const int f_rows = f_column <= f_last ? imin(m_size - f_row, 32 - f_first) : 0;


const half *a_from = p0 + (batch) * v8;
const int a_piece = tid % 4, a_row = tid / 4;
int a_at[2];
int a_k = first * 32 + a_piece * 8;
const int a_depth = v9;
UNROLL for (int i = 0; i < 2; i++) {
const int row = imin(m0 + a_row + i * 16, m_size - 1);
a_at[i] = (row) * v10;
}
auto load_a = [&](char *to) {
const int at = a_k;
UNROLL for (int i = 0; i < 2; i++) {
copy_piece<16>(to + swizzled<64>(a_row + i * 16, a_piece), a_from + a_at[i] + at, true);
}
a_k += 32;
};

grid_wait();
UNROLL for (int s = 0; s < 2; s++) {
  if (first + s < last) { load_b(shared + s * 4096 + 2048); load_a(shared + s * 4096 + 0); }
  cp_async_commit();
}

Fetched f_own[2];

float sums[2][2][4] = {};
auto fragments_a = [&](const char *a, int step, uint32_t (&x)[2][4]) {
  UNROLL for (int i = 0; i < 2; i++) ldmatrix_x4(x[i], a + swizzled<64>(warp_m * 32 + i * 16 + lane % 16, step * 2 + lane / 16));
};
auto fragments_b = [&](const char *b, int step, uint32_t (&x)[2][2]) {
  UNROLL for (int j = 0; j < 2; j += 2) {
    uint32_t both[4];
    ldmatrix_x4(both, b + swizzled<64>(warp_n * 16 + j * 8 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
    UNROLL for (int i = 0; i < 4; i++) x[j + i / 2][i % 2] = both[i];
  }
};
auto multiply = [&](const char *a, const char *b) {
  uint32_t x[2][2][4], y[2][2][2];
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
      UNROLL for (int j = 0; j < 2; j++) mma(sums[i][j], x[now][i], y[now][j], Tag<half>());
  }
};
int from = 0, into = 2;
for (int t = first; t < last; t++) {
  cp_async_wait<1>();
  __syncthreads();
  if (t + 2 < last) {
    load_a(shared + into * 4096);
    load_b(shared + into * 4096 + 2048);
  }
  cp_async_commit();
  multiply(shared + from * 4096, shared + from * 4096 + 2048);
  from = from == 2 ? 0 : from + 1;
  into = into == 2 ? 0 : into + 1;
}
cp_async_wait<0>();

__syncthreads();
float *const all = reinterpret_cast<float *>(shared), *const own = all + warp_k * 1280;
UNROLL for (int i = 0; i < 4; i++) {
  const int row = warp_m * 32 + i * 8 + lane / 4;
  float *const to = own + row * 40;
  UNROLL for (int j = 0; j < 2; j++) {
    const int column = warp_n * 16 + j * 8 + lane % 4 * 2;
    store_vec(to + column, Vec<float, 2>{{sums[i / 2][j][i % 2 * 2 + 0], sums[i / 2][j][i % 2 * 2 + 1]}});
  }
}
__syncthreads();
for (int r0 = 0; r0 < 2; r0 += 2) {
UNROLL for (int r = 0; r < 2; r++) if (const int row = f_row + (r0 + r) * 16; (r0 + r) * 16 < f_rows) {
  float sum[8] = {};
  const float *from = all + (f_first + (r0 + r) * 16) * 40 + tid % 4 * 8;
  UNROLL for (int layer = 0; layer < 1; layer++)
    UNROLL for (int i = 0; i < 8; i += 4) {
      const auto part = load_vec<float, 4>(from + layer * 1280 + i);
      UNROLL for (int j = 0; j < 4; j++) sum[i + j] += part.v[j];
    }
UNROLL for (int i = 0; i < 1; i++) {
  Vec<uint32_t, 4> piece;
  UNROLL for (int j = 0; j < 4; j++) piece.v[j] = pack2(sum[i * 8 + j * 2 + 0], sum[i * 8 + j * 2 + 1], Tag<half>());
  store_vec(reinterpret_cast<uint32_t *>(y + (row) * v3 + f_column + i * 8), piece);
}
}
}
}
