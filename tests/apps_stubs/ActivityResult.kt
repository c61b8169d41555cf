package androidx.activity.result.contract

import android.net.Uri

abstract class ActivityResultContract<I, O>

class ActivityResultContracts {
    open class GetContent : ActivityResultContract<String, Uri?>()
}
