import java.io.*;
import java.util.*;

/** Objects enough that they are collected while two threads work; each line of the file tells what there is. */
public class Grow {
    static long work(long seed, Map<Long, byte[]> map) {
        long x = seed;
        for (int i = 0; i < 15000; i++) {
            x ^= x << 13; x ^= x >>> 7; x ^= x << 17;
            byte[] bytes = new byte[(int) (x & 1023)];
            Arrays.fill(bytes, (byte) (x >>> 20));
            map.put(x & 0x3fff, bytes);
        }
        return x;
    }

    static long sum(Map<Long, byte[]> map) {
        long sum = 0;
        for (var entry : map.entrySet()) sum = sum * 31 + entry.getKey() + Arrays.hashCode(entry.getValue());
        return sum;
    }

    public static void main(String[] args) throws Exception {
        Map<Long, byte[]> one = new TreeMap<>(), two = new TreeMap<>();
        long[] state = {88172645463325252L, 362436069L};
        try (var out = new PrintWriter(new FileWriter("out"))) {
            for (int step = 1; step <= 250; step++) {
                var first = new Thread(() -> state[0] = work(state[0], one));
                var second = new Thread(() -> state[1] = work(state[1], two));
                first.start(); second.start();
                first.join(); second.join();
                out.println(step + " " + sum(one) + " " + sum(two));
                out.flush();
                if (step % 10 == 0) System.gc();
            }
        }
    }
}
