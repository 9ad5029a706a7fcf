"""SHA-256 with its states laid open, which the standard library hides."""

H0 = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19]


def constants():
    """The first 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2)."""
    primes = [n for n in range(2, 312) if all(n % d for d in range(2, int(n**0.5) + 1))]
    for p in primes[:64]:
        low, high = 0, 7 << 32
        while low < high:  # floor(cube root of p, times 2^32)
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**3 <= p << 96 else (low, middle - 1)
        yield low & 0xFFFFFFFF


K = list(constants())


def compress(state, block):
    """The SHA-256 compression function (FIPS 180-4, 6.2.2)."""
    rotate = lambda x, n: (x >> n | x << (32 - n)) & 0xFFFFFFFF
    w = [int.from_bytes(block[i : i + 4], "big") for i in range(0, 64, 4)]
    for t in range(16, 64):
        s0 = rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ w[t - 15] >> 3
        s1 = rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ w[t - 2] >> 10
        w.append((w[t - 16] + s0 + w[t - 7] + s1) & 0xFFFFFFFF)
    a, b, c, d, e, f, g, h = state
    for k, x in zip(K, w):
        t1 = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + (e & f ^ ~e & g) + k + x
        t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + (a & b ^ a & c ^ b & c)
        a, b, c, d, e, f, g, h = (t1 + t2) & 0xFFFFFFFF, a, b, c, (d + t1) & 0xFFFFFFFF, e, f, g
    return [(x + y) & 0xFFFFFFFF for x, y in zip(state, (a, b, c, d, e, f, g, h))]


def states(data, piece):
    """The states after each whole piece of data but the last, as bytes."""
    state, out = list(H0), b""
    for i in range(0, (len(data) - 1) // piece * piece, 64):
        state = compress(state, data[i : i + 64])
        if (i + 64) % piece == 0:
            out += b"".join(x.to_bytes(4, "big") for x in state)
    return out
