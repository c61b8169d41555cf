// As org.pytorch:pytorch_android_lite 2.1.0 has them.
package org.pytorch;

public abstract class Tensor {
    public static Tensor fromBlobUnsigned(byte[] data, long[] shape) { throw new UnsupportedOperationException(); }
    public static Tensor fromBlob(byte[] data, long[] shape) { throw new UnsupportedOperationException(); }
    public static Tensor fromBlob(int[] data, long[] shape) { throw new UnsupportedOperationException(); }
    public static Tensor fromBlob(float[] data, long[] shape) { throw new UnsupportedOperationException(); }
    public static Tensor fromBlob(long[] data, long[] shape) { throw new UnsupportedOperationException(); }
    public byte[] getDataAsByteArray() { throw new UnsupportedOperationException(); }
    public byte[] getDataAsUnsignedByteArray() { throw new UnsupportedOperationException(); }
    public int[] getDataAsIntArray() { throw new UnsupportedOperationException(); }
    public float[] getDataAsFloatArray() { throw new UnsupportedOperationException(); }
    public long[] getDataAsLongArray() { throw new UnsupportedOperationException(); }
}
