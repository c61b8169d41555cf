package android.graphics

import java.io.InputStream

class Bitmap {
    enum class Config { ALPHA_8, RGB_565, ARGB_8888, RGBA_F16, HARDWARE }

    val width: Int get() = throw NotImplementedError()
    val height: Int get() = throw NotImplementedError()
    val config: Config? get() = throw NotImplementedError()
    fun copy(config: Config, isMutable: Boolean): Bitmap? = throw NotImplementedError()
    fun getPixels(pixels: IntArray, offset: Int, stride: Int, x: Int, y: Int, width: Int, height: Int): Unit = throw NotImplementedError()
}

object BitmapFactory {
    @JvmStatic fun decodeStream(stream: InputStream?): Bitmap? = throw NotImplementedError()
}
